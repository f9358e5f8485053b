"""From a command line to a job: Hydra composes, and a user's mistake ends in one line and exit code 2."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from src.common.errors import ConfigError, unknown
from src.runs.claim import RunFailed
from src.runs.folder import RunFolder
from src.runs.record import own_loggers, record_refusal, status_of
from src.runs.resume import first_difference, read_settings, with_saved_settings
from src.runs.schema import check, register_schemas

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
FAILED, MISTAKE = 1, 2  # exit codes; a mistake is what the user can put right


class UserError(Exception):
    """Something the user can put right, said in one line."""


@contextmanager
def mistakes() -> Iterator[None]:
    """Turn the errors that a user's input causes into `UserError`; for the part of a job before it trains."""
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        own = isinstance(cause, ConfigError | MisconfigurationException)
        text = _one_line(cause if own else error).replace(
            ", set env var HYDRA_FULL_ERROR=1 to see chained exception.", ","
        )
        raise UserError(text) from error
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is not set, give it as {error.full_key}=...") from error
    except (ConfigError, MisconfigurationException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error


def launch(command: str, job: Callable[[DictConfig, Path], None]) -> int:
    """Run `job(config, folder)` for what the command line asks for, once or for each job of a sweep.

    `command` names the primary config in conf/. `folder` exists and is the job's own. A job that fails, or that is
    refused, does not keep a sweep from its other jobs; one that is interrupted ends the sweep.

    Returns:
        The exit code: 0, 1 if a run failed, 2 if the user can put it right.
    """
    # Hydra would print errors itself, in several lines and with exit code 1; with this it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_schemas()

    codes = [0]
    launched_by = os.getpid()

    def end(code: int) -> None:
        codes.append(code)
        if os.getpid() != launched_by:  # a launcher's process, whose memory the command does not see
            raise _JobEnded(code)

    def task(config: DictConfig) -> None:
        # Lightning's own announcements would drown the run's. Here, since a launcher may start processes for jobs.
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", module="lightning.*")
        folder = Path(HydraConfig.get().runtime.output_dir)
        sweeps = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            with mistakes():
                config = _to_go_on(command, config, folder, sweeps=sweeps)
                check(command, config)
            with own_loggers():
                job(config, folder)
        except _Done as done:
            print(done)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            if sweeps:
                record_refusal(folder, command, command_of_job(command), config, str(error))
            elif not any(folder.iterdir()):
                folder.rmdir()
            end(MISTAKE)
        except RunFailed as error:
            print(f"error: {error}", file=sys.stderr)
            end(FAILED)
        except Exception:
            traceback.print_exc()  # the run's result.json has it in one line
            end(FAILED)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(task)()
    except _JobEnded as ended:  # Hydra lets the other jobs run before it raises what the first of them raised
        codes.append(ended.code)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return _refuse(_composition_mistake(command, error))
    except OSError as error:
        return _refuse(f"cannot make the folder {error.filename}: {error.strerror} (folder=...)")
    return max(codes)


class _JobEnded(Exception):
    """A job ended with an exit code other than 0, and has said why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Done(Exception):
    """A job of a sweep that was to be completed has nothing left to do."""


def _to_go_on(command: str, config: DictConfig, folder: Path, *, sweeps: bool) -> DictConfig:
    """Return the settings of a job: those composed or, for one that goes on, its own."""
    overrides = HydraConfig.get().overrides.task
    if not sweeps:
        if config.sweep.resume is not None:
            raise ConfigError("sweep.resume goes with --multirun, allowed for one run is resume=FOLDER")
        return config if config.resume is None else with_saved_settings(command, config, overrides, folder)
    if config.resume is not None:
        raise ConfigError("resume takes one run, allowed for a sweep is sweep.resume=FOLDER")
    if config.sweep.resume is None or not RunFolder(folder).config.exists():
        return config
    saved, _ = read_settings(folder)
    different = first_difference(config, saved)
    if different is not None:
        raise ConfigError(f"{folder} holds a run with another {different}, allowed is the sweep's own command")
    if status_of(folder) == "ok":
        raise _Done(f"{folder}: finished before")
    config.resume = str(folder)
    return config


def command_of_job(command: str) -> str:
    """Return the shell command that runs the present job again, in a folder of its own."""
    overrides = HydraConfig.get().overrides.task
    kept = [override for override in overrides if not override.lstrip("+").startswith(("folder=", "sweep.resume="))]
    return shlex.join(["python", "-m", f"src.{command}", *kept])


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return MISTAKE


def _composition_mistake(command: str, error: Exception) -> str:
    """Say in one line why a config could not be composed, with the nearest name that exists."""
    cause = error.__cause__ or error
    nameless = [argument for argument in sys.argv[1:] if argument.startswith("=")]
    if isinstance(error, OverrideParseException) or nameless:
        unreadable = error.override if isinstance(error, OverrideParseException) else nameless[0]
        return f"cannot read {unreadable!r}, allowed are overrides of the form key=value"
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = [option for option in error.options if not option.endswith("_schema")]
        return str(unknown(f"{group} option" if group else "config", name, options))
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        key = cause.full_key or str(cause.key)
        return _unknown_key(command, key, error)
    match = re.search(r"Could not override '([^']+)'", str(error)) or re.search(
        r"override '?([\w./@]+)'?.*No match", str(error)
    )
    if match:
        return _unknown_key(command, match[1], error)
    key = getattr(cause, "full_key", None)
    return f"{key}: {_first_line(cause)}" if key else _one_line(error)


def _unknown_key(command: str, key: str, error: Exception) -> str:
    """Name the nearest key; keys of one parent are listed, the whole tree is too much to read."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, overrides=[text for text in sys.argv[1:] if _chooses_an_option(text)])
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(config, parent, throw_on_missing=False) if parent else config
    if not isinstance(node, DictConfig):
        return _unknown_key(command, parent, error) if parent else _one_line(error)
    names = [str(name) for name in node]
    if not parent:
        names += ["experiment", "debug"]
    if last in names:
        return _one_line(error)
    nearest = str(unknown("key", last, names))
    return nearest if not parent else f"{nearest}, in {parent}"


def _chooses_an_option(override: str) -> bool:
    group, _, option = override.partition("=")
    return (CONF / group / f"{option}.yaml").is_file()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
