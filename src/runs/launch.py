"""From a command line to a job. Hydra composes the config; a user's mistake ends in one line and exit code 2."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from src.common.errors import ConfigError, Interrupted
from src.common.shell import override, pastable, shell_word
from src.common.terminal import refuse, say
from src.runs import (
    orders,  # noqa: F401  which conf/ refers to
    placing,
    sweeps,
    workers,
)
from src.runs.build import check_targets
from src.runs.claim import RunFailed, is_first_process
from src.runs.commandline import as_typed, drop_inherited, is_sweep, only_shows, ready
from src.runs.composition import CONF, composition_mistake, one_line
from src.runs.devices import say_threads
from src.runs.folder import RunFolder
from src.runs.loggers import own_loggers
from src.runs.record import record_refusal, status_of
from src.runs.resume import first_difference, read_settings, with_saved_settings
from src.runs.schema import check, check_keys, register_schemas
from src.runs.sweeps import is_job
from src.runs.targets import look_here, own_traceback

Prepare = Callable[[DictConfig, Sequence[str]], DictConfig]

FAILED = 1  # the exit code of a run that ended with an error


class UserError(Exception):
    """A mistake of the user, described in one line."""


@contextmanager
def mistakes() -> Iterator[None]:
    """Turn the errors that a user's input causes into `UserError`; for the part of a job before it trains."""
    try:
        yield
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is not set, set it with {error.full_key}=...") from error
    except (ConfigError, MisconfigurationException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from error


def launch(
    command: str,
    job: Callable[[DictConfig, Path], None],
    prepare: Prepare | None = None,
    *,
    after_sweep: Callable[[Path], None] | None = None,
) -> int:
    """Run `job(config, folder)` for what the command line asks for, once or for each job of a sweep.

    `command` names the primary config in conf/. `folder` exists and belongs to the job alone. After a job that fails or is
    refused, a sweep continues with its other jobs; an interrupted job ends the sweep.
    `prepare` returns the settings of a new run, given the composed ones and the overrides of the command line.
    `after_sweep(folder)` is called when the jobs of a sweep have ended, however they ended.

    Returns:
        The exit code: 0, 1 if a run failed, 2 if the user has made a mistake.
    """
    codes = [0]
    launched_by, threads = os.getpid(), torch.get_num_threads()

    def task(config: DictConfig) -> None:
        if os.getpid() == launched_by:
            with workers.run_here():
                codes.append(_run(command, job, config, prepare))
            return
        say_threads(threads)
        name = Path(HydraConfig.get().runtime.output_dir).name
        code = workers.run(lambda: _run(command, job, config, prepare), name)
        if code != 0:  # the command does not see the memory of a launcher's process
            raise _JobEnded(code)

    mistake = 0
    try:
        with workers.stopped_together() if is_sweep(sys.argv) else nullcontext():
            mistake = _composed(command, task)
    except _JobEnded as ended:  # Hydra lets the other jobs run before it raises what the first of them raised
        codes.append(ended.code)
    finally:
        swept = sweeps.folder()
        if after_sweep is not None and swept is not None and is_first_process():
            after_sweep(swept)
    if swept is not None and workers.stopped_by():
        again = shell_word(override("sweep.resume", swept))
        print(f"the sweep was stopped; to continue: the same command with {again}", file=sys.stderr)
        return 128 + workers.stopped_by()
    return max(mistake, *codes)


def launch_jobs(command: str, start: Callable[[DictConfig], int]) -> int:
    """Run `start(config)` for what the command line asks for: a command that starts runs as jobs, and is none itself.

    `command` names the primary config in conf/. Ctrl-C and SIGTERM stop the jobs after their steps, with checkpoints.

    Returns:
        The exit code: what `start` returns, 2 if the user has made a mistake, or 128 plus the number of a signal.
    """
    codes = [0]
    # Hydra would choose these options for the config of this command. They are names, for the configs of its jobs.
    typed, named = sys.argv, {}
    for argument in typed[1:]:
        key, equals, option = argument.partition("=")
        if equals and key in ("space", "data"):
            named[key] = option

    def task(config: DictConfig) -> None:
        look_here()
        try:
            with mistakes():
                config.merge_with(named)
                check_keys(command, config)
            codes.append(start(config))
        except UserError as error:
            codes.append(refuse(error))

    if is_sweep(sys.argv):
        return refuse(f"src.{command} starts all of its jobs itself, without --multirun")
    try:
        sys.argv = [argument for argument in typed if argument.partition("=")[0] not in named]
        with workers.stopped_together():
            codes.append(_composed(command, task, places=False))
    finally:
        sys.argv = typed
    return 128 + workers.stopped_by() if workers.stopped_by() else max(codes)


def _composed(command: str, task: Callable[[DictConfig], None], *, places: bool = True) -> int:
    """Let Hydra call `task` with the config of the command line, once or for each job; return the code of a mistake, or 0.

    With `places` false no folder of a run is made, also not where `task` composes the configs of runs to look at them.
    """
    # Hydra would print errors itself, in several lines and with exit code 1; with this it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_schemas()
    typed = sys.argv
    try:
        sys.argv = [typed[0], *ready(typed[1:])]
        sweeps.begin()
        placing.begin(makes=places and is_first_process() and not only_shows(typed[1:]))
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(task)()
    except ConfigError as error:
        return refuse(error)
    except (HydraException, OmegaConfBaseException) as error:
        return refuse(composition_mistake(command, sys.argv[1:], error))
    except YAMLError as error:
        return refuse(f"cannot read a file in conf/: {one_line(error)}")
    except OSError as error:
        if error.filename is None:
            raise
        return refuse(f"cannot make the folder {error.filename}: {error.strerror} (folder=...)")
    finally:
        sys.argv = typed
    return 0


def _run(command: str, job: Callable[[DictConfig, Path], None], config: DictConfig, prepare: Prepare | None) -> int:
    """Run one job, and return the exit code."""
    # Lightning's own announcements would drown the run's. Here, since a launcher may start processes for jobs.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    look_here()
    folder = Path(HydraConfig.get().runtime.output_dir)
    sweeps = is_job()
    overrides = HydraConfig.get().overrides.task

    def remove_if_empty() -> None:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def give_up(message: str) -> None:
        """Leave a record in a sweep, and no empty folder elsewhere, unless the run has begun."""
        if sweeps:
            record_refusal(folder, command, command_of_job(command), config, message)
        else:
            remove_if_empty()

    try:
        with mistakes():
            if config.get("plan") and config.resume is not None:
                raise ConfigError("plan=true is for a run that has not begun; leave out resume=...")
            if config.sweep.resume is not None:
                config.folder = config.sweep.resume
            drop_inherited(config, overrides)
            if prepare is not None:
                config = prepare(config, overrides)
            config = _resumed(command, config, folder, sweeps=sweeps)
            drop_inherited(config, overrides)  # settings that a resumed run has saved are inherited, too
            check(command, config)
            check_targets(command, config)
        with own_loggers():
            job(config, folder)
        if config.get("plan"):
            remove_if_empty()
    except _Done as done:
        say(str(done))
    except Interrupted as stop:  # before the training, which would leave a record
        print(f"stopped by {stop.by} before the training began", file=sys.stderr)
        return 128 + stop.signal_number
    except UserError as error:
        code = refuse(error)
        give_up(str(error))
        return code
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except Exception as error:
        print(own_traceback(error), end="", file=sys.stderr)
        give_up(one_line(error))
        return FAILED
    return 0


class _JobEnded(Exception):
    """A job ended with an exit code other than 0, and has printed why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Done(Exception):
    """A job of a resumed sweep has nothing left to do."""


def _resumed(command: str, config: DictConfig, folder: Path, *, sweeps: bool) -> DictConfig:
    """Return the settings of a job: the composed ones or, if it is resumed, its saved ones."""
    overrides = HydraConfig.get().overrides.task
    if not sweeps:
        if config.sweep.resume is not None:
            raise ConfigError("sweep.resume needs --multirun; to resume a single run, use resume=FOLDER")
        return config if config.resume is None else with_saved_settings(command, config, overrides, folder)
    if config.resume is not None:
        raise ConfigError("resume works for a single run; to resume a sweep, use sweep.resume=FOLDER")
    if config.sweep.resume is None or not RunFolder(folder).config.exists():
        return config
    saved, _ = read_settings(folder)
    different = first_difference(config, saved)
    if different is not None:
        raise ConfigError(
            f"{folder} holds a run with another {different}; sweep.resume needs the command of the sweep itself"
        )
    if status_of(folder) == "ok":
        raise _Done(f"{folder}: finished before")
    config.resume = str(folder)
    return config


def command_of_job(command: str) -> str:
    """Return the shell command that runs the present job again, in a folder of its own."""
    overrides = HydraConfig.get().overrides.task
    kept = [
        override for override in overrides if not override.lstrip("+").startswith(("folder=", "plan=", "sweep.resume="))
    ]
    return pastable(command, map(as_typed, kept))
