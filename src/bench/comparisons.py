"""The parts of `python -m src.bench` that compare forms side by side."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional as F

from src.bench.forms import (
    DATA_BATCHES,
    HYPERGRADIENTS,
    Sizes,
    alpha_error,
    data_step,
    digit_batches,
    our_search,
    retrain_step,
    search_step,
)
from src.bench.measuring import Rows, compare, counted, in_turn, operator_calls, peak_memory, size_arguments
from src.bilevel.hypergradient import of_order

SEARCH_FORMS = ("published", "published, channels_last", "fused", "merged")
DEMO_FORMS = ("published", "reference", "fused", "merged")
RETRAIN_FORMS = ("published", "published, channels_last", "fused")
DATA_FORMS = ("published", "published, 2 workers", "this code")
HYPERGRADIENT_FORMS = (
    ("reference", "exact"),
    ("reference", "finite_difference"),
    ("reference", "one_sided"),
    ("merged", "exact"),
    ("merged", "finite_difference"),
    ("fused", "finite_difference"),
    ("fused", "float64_difference"),
    ("fused", "one_sided"),
    ("fused", "first_order"),
)


def search(sizes: Sizes) -> Rows:
    """A search step of both orders, in every form.

    `alpha gradient off by` is the largest relative error at the first three steps of a search of digits, against
    float64: the effect of rounding.
    """
    for order in (1, 2):
        hypergradient = of_order(order)
        own = compare({form: search_step(form, sizes, hypergradient) for form in SEARCH_FORMS}, sizes)
        for row in own:
            form = row["form"]
            memory = None
            if sizes.memory:
                memory = peak_memory(["--measure", form, "--order", str(order), *size_arguments(sizes)], sizes.device)
            calls = operator_calls(search_step(form, counted(sizes), hypergradient))
            # The published form with channels_last rounds as the reference does.
            ours = {"published": None, "published, channels_last": "reference"}.get(form, form)
            yield {
                "order": order,
                **row,
                "GB": memory,
                "operator calls": calls.all,
                "without views": calls.without_views,
                "alpha gradient off by": ours and alpha_error(ours, sizes, hypergradient),
            }


def hypergradient(sizes: Sizes) -> Rows:
    """The second-order forms along a search of digits, all at the same points, against the exact product."""
    search = our_search("fused", sizes, HYPERGRADIENTS["finite_difference"])
    forms = {form: our_search(form, sizes, HYPERGRADIENTS["finite_difference"]) for form, _ in HYPERGRADIENT_FORMS}
    batches = digit_batches(sizes)
    memory = {
        (form, name): peak_memory(
            ["--measure", form, "--hypergradient", name, "--order", "2", *size_arguments(sizes)], sizes.device
        )
        for form, name in HYPERGRADIENT_FORMS
        if sizes.memory
    }
    done = 0
    for point in (0, sizes.steps, 4 * sizes.steps):
        for _ in range(point - done):
            search(next(batches))
        done = point
        batch = next(batches)
        for form in forms.values():
            form.copy_state(search)
        steps = {
            f"{name}, {form}": partial(forms[form].alpha_gradient, batch, HYPERGRADIENTS[name])
            for form, name in HYPERGRADIENT_FORMS
        }
        seconds = in_turn(steps, sizes.pairs, sizes.device)
        values = {name: step() for name, step in steps.items()}
        total, correction = values["exact, reference"]
        for form, name in HYPERGRADIENT_FORMS:
            own_total, own_correction = values[f"{name}, {form}"]
            yield {
                "step": point,
                "hypergradient": name,
                "space.impl": form,
                "seconds": statistics.median(seconds[f"{name}, {form}"]),
                "GB": memory.get((form, name)),
                "gradient off by": float((own_total - total).norm() / total.norm()),
                "gradient cosine": float(F.cosine_similarity(own_total, total, dim=0)),
                "correction off by": float((own_correction - correction).norm() / correction.norm()),
                "correction cosine": float(F.cosine_similarity(own_correction, correction, dim=0)),
            }


def retrain(sizes: Sizes) -> Rows:
    """A training step of DARTS_V2."""
    yield from compare({form: retrain_step(form, sizes) for form in RETRAIN_FORMS}, sizes)


def data(sizes: Sizes) -> Rows:
    """Images a second, against a DataLoader with torchvision's transforms for each image."""
    for row in compare({form: data_step(form, sizes) for form in DATA_FORMS}, sizes):
        yield {**row, "images a second": round(DATA_BATCHES * sizes.batch / row["seconds"])}


def demo(sizes: Sizes) -> Rows:
    """A search step of both orders at the demo's size, with one thread and with two."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for order in (1, 2):
                steps = {form: search_step(form, sizes, of_order(order)) for form in DEMO_FORMS}
                for row in compare(steps, sizes):
                    yield {"threads": threads, "order": order, **row}
    finally:
        torch.set_num_threads(before)


def growth(sizes: Sizes) -> Rows:
    """How the time of an order 2 step grows, one size at a time."""
    for name, values in {
        "channels": (8, 16, 32),
        "cells": (5, 8, 11),
        "batch": (32, 64, 128),
        "image": (16, 32),
    }.items():
        for value in values:
            own = replace(sizes, **{name: value})
            seconds = in_turn({"fused": search_step("fused", own, of_order(2))}, sizes.pairs, sizes.device)["fused"]
            yield {"size": f"{name}={value}", "seconds": statistics.median(seconds)}
