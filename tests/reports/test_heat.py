from __future__ import annotations

import xml.etree.ElementTree as ET

from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from src.architectures.architecture import Answer
from src.reports.drawing import to_svg
from src.reports.heat import heat_figure
from src.spaces.cnn.genotypes import split_keys

KEYS = ["normal_n2_p0", "normal_n2_p1", "normal_n3_p0", "normal_n3_p1", "normal_n3_p2"]
WEIGHTS = {key: {"none": [0.5, 0.6, 0.2], "skip_connect": [0.5, 0.4, 0.8]} for key in KEYS}
CHOICES: dict[str, Answer] = {**dict.fromkeys(KEYS, "skip_connect"), "normal_n3_p0": None}


def texts(figure: Figure) -> list[str]:
    return [
        "".join(node.itertext()).strip() for node in ET.fromstring(to_svg(figure)).iter() if node.tag.endswith("text")
    ]


def test_keys_are_sorted_into_cells_and_others() -> None:
    cells, others = split_keys(["mine", "reduce_n2_p1", *KEYS, "normal_n2_p2"])
    assert list(cells) == ["normal", "reduce"]
    assert cells["reduce"] == {(2, 1): "reduce_n2_p1"}
    assert cells["normal"][3, 2] == "normal_n3_p2"
    assert others == ["mine", "normal_n2_p2"]  # a node cannot take itself


def test_heat_map_writes_every_weight_and_frames_the_answers() -> None:
    last = {key: {name: line[-1] for name, line in WEIGHTS[key].items()} for key in KEYS}
    figure = heat_figure(KEYS, last, CHOICES, "Normal cell")
    drawn = texts(figure)
    assert drawn.count("0.200") == drawn.count("0.800") == len(KEYS)
    framed = [patch for patch in figure.axes[0].patches if to_rgba(patch.get_facecolor())[3] == 0]
    assert len(framed) == 4
    assert "node 2 → node 3" in drawn
