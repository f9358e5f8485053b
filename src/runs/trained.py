"""The network of a run, with the weights that the run left, in a form for use: raw inputs in, outputs out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from src.common.errors import ConfigError, shorten
from src.common.seeding import preserved_randomness
from src.data.augment import normalize
from src.runs.build import build_evaluated, build_network
from src.runs.checkpoints import check_fits, newest_whole
from src.runs.folder import RunFolder
from src.runs.resume import read_settings
from src.runs.searched import load_architecture
from src.runs.targets import plain
from src.spaces.evaluation import fixed_network, load_answers
from src.spaces.relaxed import WEIGHTS

_LARGEST_CHECKPOINT = 16 << 30
_NET = "net."  # how the names of a training module's weights begin


@dataclass(frozen=True)
class Facts:
    """What a run knows of its data without reading them.

    Attributes:
        name: of the data.
        input_shape: of one sample.
        input_type: of raw inputs, such as `uint8`; None where the run's data module does not say.
        outputs: the size of the network's last layer.
        classes: their names; None for anything but a classification.
        mean: of each channel or feature, float32 (C,); None is no standardisation.
        std: likewise.
    """

    name: str
    input_shape: tuple[int, ...]
    input_type: str | None
    outputs: int
    classes: tuple[str, ...] | None
    mean: Tensor | None
    std: Tensor | None

    @classmethod
    def parse(cls, record: Mapping[str, Any], folder: RunFolder) -> Facts:
        """Read the record of a run's data, as checkpoints hold it.

        Raises:
            ConfigError: it lacks something that the network is built from.
        """
        mean, std = (
            None if record.get(name) is None else torch.tensor(record[name], dtype=torch.float32)
            for name in ("mean", "std")
        )
        try:
            shape, outputs = tuple(int(side) for side in record["input_shape"]), int(record["outputs"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"the run in {folder} does not say what its inputs and outputs are; run it again with this version"
            ) from None
        # Runs of older versions, which do not name the type, standardised images of three dimensions.
        pixels = "uint8" if mean is not None and len(shape) == 3 else None
        return cls(
            name=str(record.get("name")),
            input_shape=shape,
            input_type=record.get("input_type", pixels),
            outputs=outputs,
            classes=tuple(record["classes"]) if "classes" in record else None,
            mean=mean,
            std=std,
        )

    @property
    def are_pixels(self) -> bool:
        """Whether raw inputs are images of type uint8."""
        return self.input_type == "uint8" and len(self.input_shape) == 3


class TrainedNetwork(nn.Module):
    """A network behind the normalisation of its run. `torch.export` and `torch.onnx.export` take it as it is.

    Args:
        net: the network alone, which maps normalised inputs to its outputs, or to a pair of them and an auxiliary head's.
        facts: of the run's data. Where they do not name the type of raw inputs, the run has a data module of its own,
            and the network takes what that makes of its data.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, net: nn.Module, facts: Facts) -> None:
        super().__init__()
        self.net = net
        self.normalizes = facts.input_type is not None
        self.register_buffer("mean", facts.mean)
        self.register_buffer("std", facts.std)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map raw inputs (N, ...) to outputs (N, outputs): logits for a classification.

        Raw means as the data set has them. Images are uint8, or floating with pixels from 0 to 1.
        """
        return self.bare(normalize(inputs, self.mean, self.std) if self.normalizes else inputs)

    def bare(self, inputs: Tensor) -> Tensor:
        """Map inputs that are normalised (N, ...) to outputs (N, outputs)."""
        outputs = self.net(inputs)
        return outputs[0] if isinstance(outputs, tuple) else outputs


def trained_network(files: RunFolder, kind: str) -> tuple[TrainedNetwork, Facts]:
    """Return the network of a run in evaluation mode, on the CPU, and the facts about its data. No data are read.

    Args:
        files: of the run.
        kind: `retrain`, or `search` or `select`: then the space with its choices fixed to the genotype, with the search's weights.

    Raises:
        ConfigError: files are missing or damaged, or do not fit each other.
    """
    if not files.config.exists():
        raise ConfigError(f"{files} holds no {files.config.name}, which says how the network is built")
    if not files.genotype.exists():
        raise ConfigError(f"{files} holds no {files.genotype.name}: the run has not come to an architecture")
    config, _ = read_settings(files.path)
    found = newest_whole(files, largest=_LARGEST_CHECKPOINT)
    if found is None:
        raise ConfigError(f"{files} holds no {files.last.relative_to(files.path)}, which has the weights")
    path, checkpoint = found
    facts = Facts.parse(checkpoint.get("run", {}).get("data", {}), files)
    space = plain(config.space)
    if "impl" in space:
        space["impl"] = "reference"  # the fused form runs operators that only this code has
    supplied: dict[str, Any] = {"input_shape": facts.input_shape, "num_classes": facts.outputs}
    state = checkpoint["state_dict"]
    with preserved_randomness():
        if kind != "retrain":
            weights = {
                name.removeprefix(_NET + WEIGHTS): value
                for name, value in state.items()
                if name.startswith(_NET + WEIGHTS)
            }
            try:
                net, _ = fixed_network(
                    lambda: build_network(space, **supplied), load_answers(files.genotype), weights=weights
                )
            except ConfigError as error:
                raise ConfigError(f"the search in {files} has no network of one architecture: {error}") from None
        else:
            genotype = str(files.genotype)
            architecture = load_architecture(space, genotype)
            net, _ = build_evaluated(space, genotype, architecture=architecture, **supplied)
            check_fits(path, state, {_NET + name: value for name, value in net.state_dict().items()})
            net.load_state_dict({name.removeprefix(_NET): value for name, value in state.items()})
    return TrainedNetwork(net, facts).eval(), facts


def as_raw(given: Tensor, facts: Facts) -> Tensor:
    """Return inputs (N, ...), or one input (...), as a batch that a run's `TrainedNetwork` takes.

    Raises:
        ConfigError: they have another shape or type than the run's inputs.
    """
    batch = given[None] if tuple(given.shape) == facts.input_shape else given
    if tuple(batch.shape[1:]) != facts.input_shape or batch.dim() == 0:
        shape = facts.input_shape
        if len(shape) == 3 and batch.dim() in (3, 4) and tuple(batch.shape[-2:]) == shape[1:]:
            raise ConfigError(
                f"inputs must have {shape[0]} channel{'s' if shape[0] > 1 else ''}, as the run's {facts.name} have, got "
                f"{batch.shape[-3]}"
            )
        raise ConfigError(
            f"inputs must have the shape {_shape('N', *shape)}, or {_shape(*shape)} for one, got {_shape(*given.shape)}"
        )
    if len(batch) == 0:
        raise ConfigError("inputs must be one or more, got none")
    kind = facts.input_type
    if batch.is_floating_point():
        if kind is not None and not facts.are_pixels and not _is_floating(kind):
            raise _other_type(kind, batch)
        if not bool(batch.isfinite().all()):
            raise ConfigError("inputs must be finite, got nan or inf")
        if facts.are_pixels and not 0 <= float(batch.min()) <= float(batch.max()) <= 1:
            raise ConfigError(
                "floating images must have pixels from 0 to 1 (those of type uint8 from 0 to 255), got "
                f"{float(batch.min()):g} to {float(batch.max()):g}"
            )
        return batch.float()
    if kind is not None and _is_floating(kind):
        return batch.float()
    if kind is not None and str(batch.dtype) != f"torch.{kind}":
        raise _other_type(kind, batch)
    return batch


def _is_floating(kind: str) -> bool:
    return kind.startswith(("float", "bfloat"))


def _other_type(kind: str, batch: Tensor) -> ConfigError:
    return ConfigError(f"inputs must be {kind}, got {str(batch.dtype).removeprefix('torch.')}")


def _shape(*sides: object) -> str:
    return shorten(f"({', '.join(map(str, sides))}{',' if len(sides) == 1 else ''})")
