"""python -m src.dashboard: build a workspace for the runs of a project in Weights & Biases.

    python -m src.dashboard                        of the project darts, for your own account
    python -m src.dashboard PROJECT --entity TEAM  of another

It needs an account and `pip install 'darts-template[dashboard]'`. A new view is made each time; other views stay as they
are. Without an account, `wandb leet RUN/wandb` shows a run in the terminal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from src.common.errors import ConfigError
from src.common.terminal import refuse
from src.spaces.cnn.genotypes import KINDS

X = "trainer/global_step"

# Section -> panels as (title, metrics) with lines over the steps; each metric is one that src/callbacks/ logs.
PANELS: dict[str, list[tuple[str, list[str]]]] = {
    "Results": [
        ("Accuracy", ["train_accuracy", "val_accuracy", "test_accuracy"]),
        ("Loss", ["train_loss", "arch_loss", "val_loss"]),
        ("Entropy of the mixing weights, nats", ["alpha_entropy"]),
        ("Lead of the strongest candidate", ["alpha_margin"]),
        ("Skip connections in the genotype", ["skip_count"]),
        ("Choices whose strongest candidate changed", ["argmax_flips"]),
        ("Trained architecture, from the table", ["table_accuracy", "table_percentile"]),
        ("Regret, from the table", ["table_regret"]),
        ("Kendall's tau of supernet and table", ["ranking_tau", "ranking_tau_top"]),
        ("Operations with frozen weights", ["frozen_operations"]),
        ("Mean cosine between the gradients of two cells", ["cell_cosine"]),
    ],
    "Hypergradient": [
        ("Norms of the two terms", ["hypergradient/direct", "hypergradient/correction"]),
        ("Correction over direct term", ["hypergradient/ratio"]),
        ("Cosine of order 1 and order 2", ["diagnostics/cosine_order_1_2"]),
        ("Cosine of the gradient and the exact one", ["diagnostics/exact_cosine"]),
        ("Cosine of finite difference and exact", ["diagnostics/finite_difference_cosine"]),
        ("Error of the finite difference", ["diagnostics/finite_difference_error"]),
        ("Finite-difference distance", ["hypergradient/distance"]),
        ("Top eigenvalue of the alphas' Hessian", ["diagnostics/alpha_eigenvalue"]),
        (
            "Supernet and its discretised self",
            ["diagnostics/supernet_accuracy", "diagnostics/discretised_accuracy", "diagnostics/discretisation_gap"],
        ),
    ],
    "Guard": [
        *(
            (title, [f"guard/{name}", f"guard/{name}_judged", f"guard/{name}_limit"])
            for title, name in (
                ("Top eigenvalue and its limit", "eigenvalue"),
                ("Skip connections and their limit", "skips"),
                ("Entropy and its limit", "entropy"),
                ("Gap and its limit", "gap"),
            )
        ),
        ("Weight decay of the weights", ["guard/weight_decay"]),
    ],
    "Steps": [
        ("Loss of a step", ["step/train_loss", "step/arch_loss"]),
        ("Accuracy of a step", ["step/train_accuracy", "step/arch_accuracy"]),
        ("Learning rate of the weights", ["step/lr_weights"]),
        ("Learning rate of the alphas", ["step/lr_alphas"]),
        ("Seconds a step", ["time/alpha_step", "time/weight_step", "time/joint_step"]),
        ("Samples a second", ["time/samples_per_second"]),
        ("Memory, GiB", ["memory/process_peak_gib", "memory/device_peak_gib"]),
    ],
}


def workspace(entity: str, project: str) -> Any:
    """Return the workspace, not saved: pictures with a slider, a panel of mixing weights for each cell, and curves."""
    from wandb_workspaces import workspaces as ws  # noqa: PLC0415 (an extra)
    from wandb_workspaces.reports import v2 as wr  # noqa: PLC0415

    def media(title: str, *keys: str) -> Any:
        return wr.MediaBrowser(title=title, media_keys=list(keys), num_columns=len(keys), gallery_axis="step")

    cells = [
        media("Cells", *(f"cells/{kind}" for kind in KINDS)),
        media("Mixing weights", *(f"mixing_weights/{kind}" for kind in KINDS)),
        media("Genotype", "genotype_text"),
        *(
            wr.LinePlot(title=f"Mixing weights, {kind} cell", x=X, metric_regex=f"alphas/{kind}_.*", max_runs_to_show=1)
            for kind in KINDS
        ),
    ]
    sections = [ws.Section(name="Architecture", panels=cells, is_open=True)]
    for name, panels in PANELS.items():
        plots: list[Any] = [wr.LinePlot(title=title, x=X, y=list(metrics)) for title, metrics in panels]
        sections.append(ws.Section(name=name, panels=plots, is_open=name == "Results"))
    return ws.Workspace(name="DARTS", entity=entity, project=project, sections=sections)


def main(argv: Sequence[str] | None = None) -> int:
    """Build and save the workspace; return 0, or 2 if there is no account to save it in."""
    parser = argparse.ArgumentParser(
        prog="python -m src.dashboard", description="Build a workspace in Weights & Biases.", allow_abbrev=False
    )
    parser.add_argument("project", nargs="?", default="darts", metavar="PROJECT", help="its name (default: darts)")
    parser.add_argument("--entity", default=None, help="a user or a team (default: your own)")
    options = parser.parse_args(argv)
    try:
        entity = options.entity or _own_entity()
        try:
            built = workspace(entity, options.project)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "wandb_workspaces":
                raise
            raise ConfigError("a workspace needs wandb-workspaces: pip install 'darts-template[dashboard]'") from None
        print(f"workspace: {_save(built)}")
    except ConfigError as error:
        return refuse(error)
    return 0


def _own_entity() -> str:
    """Return the entity of the account that this machine is logged in to.

    Raises:
        ConfigError: it is logged in to none, or Weights & Biases does not answer.
    """
    import wandb  # noqa: PLC0415 (slow)

    from src.callbacks.weights_and_biases import check_login  # noqa: PLC0415

    check_login("without one, `wandb leet RUN/wandb` shows a run in the terminal")
    try:
        return str(wandb.Api().default_entity)
    except (wandb.Error, ValueError, OSError) as error:
        raise _no_answer(error) from error


def _save(built: Any) -> str:
    """Save a workspace as a new view, and return its address."""
    import wandb  # noqa: PLC0415 (slow)

    try:
        return str(built.save_as_new_view().url)
    except (wandb.Error, ValueError, OSError) as error:
        raise _no_answer(error) from error


def _no_answer(error: Exception) -> ConfigError:
    return ConfigError(f"Weights & Biases does not take the request: {' '.join(str(error).split())[:200]}")


if __name__ == "__main__":
    sys.exit(main())
