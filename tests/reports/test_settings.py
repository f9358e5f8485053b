from __future__ import annotations

from src.reports.settings import settings_in_words

CONFIG = {
    "seed": 3,
    "resume": None,
    "optimizer": {"weights": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.025, "fused": True}},
    "space": {"_target_": "src.spaces.cnn.cells.Supernet", "cells": 8, "candidates": ["none", "skip_connect"]},
    "logger": {},
}


def test_settings_are_said_as_a_person_would() -> None:
    groups = dict(settings_in_words(CONFIG, "search"))
    assert [tuple(row[:3]) for row in groups["Optimisation"]] == [
        ("network weights", "SGD", 0),
        ("learning rate", "0.025", 1),
        ("fused", "yes", 1),
    ]
    assert ("what", "Supernet", 0) in [tuple(row[:3]) for row in groups["Search space"]]
    assert ("cells in the network", "8", 0) in [tuple(row[:3]) for row in groups["Search space"]]
    assert [row.value for row in groups["Run"]] == ["3", "not set", "none"]
    shown = [row.name + row.value for rows in groups.values() for row in rows]
    assert not [text for text in shown if "_partial_" in text or "_target_" in text]
    assert "Network" in dict(settings_in_words(CONFIG, "retrain"))


def test_every_setting_can_be_found_by_its_key() -> None:
    keys = {row.key for _, rows in settings_in_words(CONFIG, "search") for row in rows}
    assert {"seed", "optimizer.weights.lr", "space.candidates", "space._target_"} <= keys
