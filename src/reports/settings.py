"""The settings of a run in words: what a person would say, rather than how a config file is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# How to build an object, which says nothing about a run.
_HIDDEN = {"_partial_", "_recursive_", "_convert_", "_args_"}
_TARGET = "_target_"
_WORDS = {
    "lr": "learning rate",
    "eta_min": "final learning rate",
    "T_max": "epochs of the schedule",
    "weight_decay": "weight decay",
    "arch_fraction": "share of the train split for the alphas",
    "drop_path": "drop-path probability",
    "channels": "channels of the first cell",
    "cells": "cells in the network",
    "nodes": "nodes in a cell",
    "candidates": "candidate operations",
    "operations": "modules with own operations",
    "checkpoint_minutes": "minutes between checkpoints",
    "graphs": "CUDA graphs",
    "order": "order of the hypergradient",
    "criterion": "what decides",
    "tune_epochs": "epochs of tuning between two rounds",
    "train_alphas": "tuning trains the alphas",
    "weights": "network weights",
    "impl": "implementation",
    "max_epochs": "epochs",
    "root": "folder",
    "source": "data set",
    "schedule": "learning rate schedule",
    "gradient_clip": "largest gradient norm",
    "mixed_op": "mixed operation",
    "alpha_optimizer": "optimiser of the alphas",
    "std": "standard deviation",
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
    "arch_loss": "loss on the alphas' batches",
    "hypergradient_norm": "norm of the alphas' gradient",
    "correction_ratio": "second-order correction",
    "frozen_operations": "operations with frozen weights",
    "cell_cosine": "mean cosine between the gradients of two cells",
    "weight_rule": "rule for the weights' gradients",
    "alpha_entropy": "entropy of the mixing weights",
    "argmax_flips": "changed choices in the last epoch",
    "skip_count": "skip connections",
    "exact_cosine": "cosine of the alphas' gradient and the exact one",
    "finite_difference_cosine": "cosine of the second-order correction and the exact one",
    "alpha_eigenvalue": "top eigenvalue of the alphas' Hessian",
    "ranking_tau": "Kendall's tau of the supernet and the table",
    "ranking_tau_top": "Kendall's tau among the best fifth",
    "table_accuracy": "accuracy of the trained architecture, from the table",
    "table_percentile": "share of all architectures that are worse",
    "table_regret": "accuracy that the best architecture has more",
    "weights_samples": "samples for the network weights",
    "arch_samples": "samples for the alphas",
    "split_sha256": "SHA-256 of the split",
}
_OF_TRAINING = {"order", "epochs", "checkpoint_minutes", "graphs", "hypergradient", "optimizer", "trainer"}
_OF_TRAINING |= {"diagnostics", "callbacks"}
_GROUPS = {
    "data": "Data",
    "space": "Search space",
    "method": "Method",
    "hypergradient": "Hypergradient",
    "optimizer": "Optimisation",
    "trainer": "Trainer",
    "logger": "Loggers",
    "callbacks": "Callbacks",
}


class Row(NamedTuple):
    """A row of a table: a name, a value, how deep the name is nested, and the key that sets it."""

    name: str
    value: str
    depth: int = 0
    key: str = ""


def settings_in_words(config: Mapping[str, Any], kind: str, *, trains: bool = True) -> list[tuple[str, list[Row]]]:
    """Return the settings as (group, rows): the plain ones first, then a group for each nested one.

    Args:
        config: of config.yaml.
        kind: `search` or `retrain`.
        trains: whether the run trains anything; the settings of a training are left out where it does not.
    """
    groups = []
    if not trains:
        config = {key: value for key, value in config.items() if key not in _OF_TRAINING}
    plain = [Row(name_of(key), said(value), 0, key) for key, value in config.items() if not _nested(value)]
    if plain:
        groups.append(("Run", plain))
    for key, value in config.items():
        if _nested(value):
            title = "Network" if key == "space" and kind == "retrain" else _GROUPS.get(key, name_of(key).capitalize())
            rows = [Row("what", _class_name(value[_TARGET]), 0, f"{key}.{_TARGET}")] if _TARGET in value else []
            rows += _rows(value, key, 0)
            groups += [(title, rows)] if rows else []
    return groups


def name_of(key: object) -> str:
    """Return a key in words."""
    return _WORDS.get(str(key), str(key).replace("_", " "))


def said(value: object) -> str:
    """Return a value in words, on one line."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(said, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name_of(key)}: {said(item)}" for key, item in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def nested_rows(mapping: Mapping[Any, Any]) -> list[Row]:
    """Return a mapping as rows, of which nested ones are indented."""
    return list(_rows(mapping, "", 0))


def _rows(mapping: Mapping[Any, Any], path: str, depth: int) -> Iterator[Row]:
    for key, value in mapping.items():
        full = f"{path}.{key}" if path else str(key)
        if key in _HIDDEN or key == _TARGET:
            continue
        if _nested(value):
            yield Row(name_of(key), _class_name(value[_TARGET]) if _TARGET in value else "", depth, full)
            yield from _rows(value, full, depth + 1)
        else:
            yield Row(name_of(key), said(value), depth, full)


def _nested(value: object) -> bool:
    return isinstance(value, dict) and bool(value)


def _class_name(target: object) -> str:
    """Return what a `_target_` names, without the modules on the way to it: `SGD` of torch.optim.SGD."""
    return str(target).rpartition(".")[2]
