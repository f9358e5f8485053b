from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from small_search import Space, search_module

from src.callbacks.pictures import CellPictures
from src.spaces.cnn.cells import Supernet
from src.training.search import SearchModule


class Album(TensorBoardLogger):
    """A logger that takes images and keeps them."""

    def __init__(self) -> None:
        self.images: dict[str, list[tuple[int, np.ndarray]]] = {}

    @property
    def experiment(self) -> Any:
        return self

    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.images.setdefault(tag, []).append((step, image))


class Place:
    """What the callback asks a trainer."""

    def __init__(self, epoch: int, *loggers: Any) -> None:
        self.current_epoch, self.num_training_batches = epoch, 10
        self.loggers = list(loggers)


def cells() -> SearchModule:
    return search_module(Supernet(input_shape=(1, 8, 8), num_classes=3, channels=2, cells=3, nodes=2))


def show(pictures: CellPictures, module: SearchModule, epochs: int, *loggers: Any) -> None:
    for epoch in range(epochs):
        pictures.on_train_epoch_end(Place(epoch, *loggers), module)  # pyright: ignore[reportArgumentType]


def test_both_cells_of_every_so_many_epochs() -> None:
    album = Album()
    show(CellPictures(every_n_epochs=2), cells(), 4, album)
    assert {tag: [step for step, _ in images] for tag, images in album.images.items()} == {
        "cells/normal": [19, 39],
        "cells/reduce": [19, 39],
    }
    image = album.images["cells/normal"][0][1]
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] in (3, 4)
    assert len(np.unique(image)) > 2, "something is drawn"
    assert len({image.shape for images in album.images.values() for _, image in images}) == 1


def test_another_space_is_not_drawn() -> None:
    album = Album()
    show(CellPictures(), search_module(Space()), 1, album)
    assert album.images == {}


def test_nothing_is_drawn_for_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def draw(*args: Any) -> None:
        raise AssertionError("a picture that no logger takes was drawn")

    monkeypatch.setattr("src.callbacks.pictures.cell_figure", draw)
    show(CellPictures(), cells(), 1)


def test_every_n_epochs_out_of_range() -> None:
    with pytest.raises(ValueError, match="every_n_epochs must be 1 or more, got 0"):
        CellPictures(every_n_epochs=0)
