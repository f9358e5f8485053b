"""Folders of runs whose content is made up, in the form that runs leave."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from src.architectures.architecture import Architecture
from src.methods.discretizers import Strongest
from src.spaces.cnn.genotypes import CANDIDATES, NAMED_GENOTYPES, cell_spec, edge_key

CELLS = NAMED_GENOTYPES["DARTS_V2"].to_architecture()


def make_small_run(folder: Path, **options: Any) -> Path:
    """Write a run without what takes long to draw."""
    make_run(folder, **options)
    for name in ("alphas.csv", "genotype.json"):
        (folder / name).unlink()
    record = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**record, "genotype": None}))
    return folder


def make_run(folder: Path, *, architecture: Architecture = CELLS, config: str = "", **result: Any) -> Path:
    """Write a search's folder of two epochs; what it holds is made up, its form is not."""
    (folder / "checkpoints").mkdir(parents=True)
    seed = result.get("seed", 0)
    (folder / "config.yaml").write_text(f"order: 2\nseed: {seed}\nepochs: 2\nfolder: {folder}\n{config}")
    (folder / "metrics.csv").write_text(
        "epoch,train_loss,train_accuracy,val_accuracy,lr\n0,2.1,0.25,0.2,0.025\n1,1.5,0.5,,0.01\n"
    )
    lines = [
        f"{epoch},{edge_key(kind, node, state)},{candidate},0.125"
        for epoch in range(2)
        for kind in ("normal", "reduce")
        for node in range(2, 6)
        for state in range(node)
        for candidate in CANDIDATES
    ]
    (folder / "alphas.csv").write_text("\n".join(["epoch,key,candidate,weight", *lines, ""]))
    for epoch in range(2):
        architecture.write(folder / "checkpoints" / f"epoch_{epoch}.json")
    architecture.write(folder / "genotype.json")
    record = {
        "status": "ok",
        "error": None,
        "command": ["python", "-m", "src.search", "data.root=my data"],
        "seed": seed,
        "order": 2,
        "kind": "search",
        "metrics": {"val_accuracy": 0.9},
        "genotype": architecture.to_plain(),
        "params": 1_930_618,
        "macs": 300_255_744,
        "seconds": 75.2,
        "versions": {"torch": "2.14.1"},
        "git_commit": "0123abcd",
        "data": {"name": "digits"},
        **result,
    }
    (folder / "result.json").write_text(json.dumps(record))
    return folder


def guard_facts(action: str, epoch: int, returned_to: int, epochs: int) -> dict[str, Any]:
    """Return what a guard leaves that has acted once."""
    columns = {
        "epochs": list(range(epochs)),
        "values": [0.2 + 0.001 * (place % 7) + 0.02 * max(0, place - returned_to) for place in range(epochs)],
        "judged": [None if place < 16 else 0.2 + 0.01 * max(0, place - returned_to) for place in range(epochs)],
        "limits": [None if place < 16 else 0.26 for place in range(epochs)],
    }
    text = f"after epoch {epoch}, the top eigenvalue is <high>: the search {action}s"
    event = {"epoch": epoch, "signals": ["eigenvalue"], "action": action, "returned_to": returned_to, "text": text}
    return {"action": action, "signals": {"eigenvalue": columns}, "events": [event], "returned_to": None}


def make_long_run(folder: Path, epochs: int = 50, **result: Any) -> Path:
    """Write a search of 28 edges whose mixing weights drift apart, so that its architecture changes often."""
    make_run(folder, epochs=epochs, **{"planned_epochs": epochs, **result})
    draw, spec = random.Random(1), cell_spec(4)
    keys = [
        edge_key(kind, node, state) for kind in ("normal", "reduce") for node in range(2, 6) for state in range(node)
    ]
    alphas = {key: [draw.gauss(0, 1e-3) for _ in CANDIDATES] for key in keys}
    lines, metrics = (
        ["epoch,key,candidate,weight"],
        ["epoch,train_loss,train_accuracy,val_loss,val_accuracy,alpha_entropy,lr"],
    )
    for epoch in range(epochs):
        rows = {}
        for key in keys:
            alphas[key] = [alpha + draw.gauss(0.02 * place / 8, 0.06) for place, alpha in enumerate(alphas[key])]
            total = sum(map(math.exp, alphas[key]))
            rows[key] = {name: math.exp(alpha) / total for name, alpha in zip(CANDIDATES, alphas[key], strict=True)}
        lines += [f"{epoch},{key},{name},{weight!r}" for key, row in rows.items() for name, weight in row.items()]
        entropy = -sum(weight * math.log(weight) for row in rows.values() for weight in row.values()) / len(rows)
        loss = 2.3 * math.exp(-epoch / 20) + 0.1 * draw.random()
        metrics.append(
            f"{epoch},{loss},{1 - loss / 2.6},{loss + 0.2},{1 - loss / 2.5},{entropy},{0.025 * (1 - epoch / epochs)}"
        )
        Strongest()(rows, spec).write(folder / "checkpoints" / f"epoch_{epoch}.json")
    (folder / "genotype.json").write_bytes((folder / "checkpoints" / f"epoch_{epochs - 1}.json").read_bytes())
    (folder / "alphas.csv").write_text("\n".join([*lines, ""]))
    (folder / "metrics.csv").write_text("\n".join([*metrics, ""]))
    return folder
