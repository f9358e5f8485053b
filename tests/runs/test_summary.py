"""What a command says of its run."""

from __future__ import annotations

import pytest

from src.architectures.architecture import Architecture
from src.runs.summary import samples, short_form, validation
from src.spaces.cnn.genotypes import NAMED_GENOTYPES


def test_short_form_of_cells() -> None:
    lines = short_form(NAMED_GENOTYPES["DARTS_V2"].to_architecture()).splitlines()
    assert lines == [
        "  node  normal cell                        reduction cell",
        "     2  sep_conv_3x3(0) + sep_conv_3x3(1)  max_pool_3x3(0) + max_pool_3x3(1)",
        "     3  sep_conv_3x3(0) + sep_conv_3x3(1)  max_pool_3x3(1) + skip_connect(2)",
        "     4  skip_connect(0) + sep_conv_3x3(1)  max_pool_3x3(0) + skip_connect(2)",
        "     5  skip_connect(0) + dil_conv_3x3(2)  max_pool_3x3(1) + skip_connect(2)",
    ]


def test_short_form_of_another_space() -> None:
    few = Architecture({"first": "conv", "skips": ("a", "b"), "dropped": None})
    assert short_form(few) == "  first  conv\n  skips  a + b"
    many = short_form(Architecture({f"layer{index}": "conv" for index in range(20)})).splitlines()
    assert len(many) == 13
    assert many[-1].split() == ["...", "and", "8", "more"]


@pytest.mark.parametrize(
    ("counts", "name", "sizes", "validated"),
    [
        ({"train": 1200, "validation": 0}, None, "3; 1,200 samples to train on", "no validation"),
        ({"train": 2, "validation": 5}, "validation", "3; 2 samples to train on", "validation on 5 samples of its own"),
        (
            {"weights": 2, "arch": 4, "validation": 0},
            "alphas' half",
            "3; 2 samples for the weights, 4 samples for the alphas",
            "validation on the alphas' half",
        ),
    ],
)
def test_data(counts: dict[str, int], name: str | None, sizes: str, validated: str) -> None:
    data = {"input_shape": [3], **{f"{split}_samples": count for split, count in counts.items()}}
    assert (samples(data), validation(data, name)) == (sizes, validated)
