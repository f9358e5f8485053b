"""Weights & Biases: one run of it for each run's folder, one row for each training step."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from wandb.errors import Error as WandbError

from src.callbacks.loggers import Identity
from src.callbacks.scalars import ALPHAS
from src.common.errors import ConfigError, must_be
from src.common.files import write_whole
from src.runs.folder import RunFolder, read_wandb

STEP = "trainer/global_step"  # the x axis, as Lightning names it
_TO_STAY_HERE = "logger.wandb.offline=true keeps the run on this machine"


class Wandb(WandbLogger):
    """Lightning's WandbLogger, which here puts all values of a step into one row and resumes the same run.

    Its id is kept in the run's folder (`wandb.json`), so that a resumed run continues it. Online, rows that Weights &
    Biases already has are not sent again; they are the same. Offline, each resume writes a file of its own with this id.

    Args:
        offline: keep the run on this machine.
        save_dir: where `wandb` puts its files.
        settings: any argument of Lightning's WandbLogger and of `wandb.init`.

    Raises:
        ConfigError: there is no account to log in to, and no terminal to ask for one.
    """

    def __init__(
        self,
        *,
        offline: bool = False,
        mode: str | None = None,
        save_dir: str = ".",
        log_model: bool | str = False,
        settings: Any = None,
        **further: Any,
    ) -> None:
        offline = offline or mode == "offline" or (mode is None and wandb.setup().settings.mode == "offline")
        if offline and log_model:
            raise must_be("log_model", "false offline, since checkpoints cannot be uploaded", log_model)
        if not offline and mode != "disabled":
            check_login()
        self.is_offline = offline
        self._file: Path | None = None
        super().__init__(
            save_dir=save_dir,
            # Lightning would set WANDB_MODE for the whole process, and the next job of a sweep would find it.
            offline=False,
            mode="offline" if offline else mode,
            log_model=cast(Any, log_model),
            settings={"quiet": True, **(settings or {})} if isinstance(settings, dict | None) else settings,
            **further,
        )
        if self._wandb_init["anonymous"] is None:
            del self._wandb_init["anonymous"]  # Lightning passes it on for `wandb` to complain about

    def of_run(self, run: Identity) -> None:
        """Call the run what its user has not called it, and resume it if its folder says which it is."""
        self._file = RunFolder(run.folder).wandb
        init = self._wandb_init
        own = {"name": run.name, "group": run.group, "job_type": run.job_type}
        own["id"] = read_wandb(RunFolder(run.folder)).get("id")
        init.update({key: value for key, value in own.items() if init.get(key) is None})
        init["tags"] = list(dict.fromkeys([*run.tags, *(init.get("tags") or ())]))
        self._id = init["id"]

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of Weights & Biases; it begins when it is first asked for."""
        if self._experiment is None:
            try:
                run = cast(Any, WandbLogger.experiment).fget(self)
            except WandbError as error:
                raise ConfigError(
                    f"Weights & Biases does not begin a run: {' '.join(str(error).split())}; {_TO_STAY_HERE}"
                ) from error
            run.define_metric(
                f"{ALPHAS}*", step_metric=STEP, step_sync=True, hidden=True
            )  # no panel for each of hundreds
            facts = {"id": run.id, "entity": run.entity, "project": run.project, "offline": self.is_offline}
            facts["url"] = None if self.is_offline else run.url  # offline it would warn
            if self._file is not None:
                write_whole(self._file, json.dumps(facts, indent=2) + "\n")
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add values to the row of a step; values of a step before the latest row are dropped."""
        if step is None or self._wandb_init.get("sync_tensorboard"):
            super().log_metrics(metrics, step)
            return
        run = self.experiment
        if step >= run.step:
            prefixed = {
                f"{self._prefix}{self.LOGGER_JOIN_CHAR}{k}" if self._prefix else k: v for k, v in metrics.items()
            }
            run.log({**prefixed, STEP: step}, step=step)


def _signature() -> inspect.Signature:
    """Return the signature of `Wandb` with all that Lightning's logger and wandb.init take, instead of **settings."""
    own = inspect.signature(Wandb.__init__).parameters
    taken = {name: one for name, one in own.items() if name != "self" and one.kind == one.KEYWORD_ONLY}
    for function in (WandbLogger.__init__, wandb.init):
        for name, one in inspect.signature(function).parameters.items():
            if name not in (*taken, "self", "config", "anonymous", "experiment") and one.kind in (
                one.POSITIONAL_OR_KEYWORD,
                one.KEYWORD_ONLY,
            ):
                taken[name] = one.replace(kind=one.KEYWORD_ONLY)
    return inspect.Signature(list(taken.values()))


Wandb.__signature__ = _signature()  # pyright: ignore[reportAttributeAccessIssue] (a mistyped setting is refused by it)


def check_login(otherwise: str = _TO_STAY_HERE) -> None:
    """Refuse to begin where Weights & Biases would fail for want of an account.

    Args:
        otherwise: what its user can do without one.

    Raises:
        ConfigError: no account is known, and there is no terminal to ask for one.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        return
    try:
        known = wandb.login(prompt=False, verify=False)
    except WandbError as error:
        raise ConfigError(f"Weights & Biases does not take the key that it was given: {error}; {otherwise}") from error
    if not known:
        raise ConfigError(
            "Weights & Biases knows no account on this machine: run `wandb login` once, or set WANDB_API_KEY; "
            f"{otherwise}"
        )
