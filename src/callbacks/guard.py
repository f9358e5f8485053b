"""The collapse guard: it watches a search for the signs of a collapse, and warns, stops the search or takes it back.

Of all callbacks this one may change a run, and only by its purpose: with `action=warn` it never does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from src.callbacks.measured import GapMeter, Measurements
from src.callbacks.record import alpha_entropy
from src.callbacks.rules import Limit, Reading, Rule, Verdict
from src.callbacks.scalars import last_step, log_row
from src.common import processes
from src.common.errors import ConfigError, must_be, unknown
from src.common.terminal import say
from src.methods.decision import SKIPS, skips
from src.runs.folder import RunFolder
from src.training.search import SearchModule

ACTIONS = ("warn", "stop", "roll_back")
SIGNALS = {
    "eigenvalue": "the top eigenvalue",
    "skips": "the number of skip connections",
    "entropy": "the entropy of the mixing weights",
    "gap": "the gap between supernet and architecture",
}
_PAST = 3  # checkpoints of a run that it may resume from: what each of them may return to is kept


class Guard(Checkpoint):
    """Judges signals of a search after its epochs, and acts on the first that breaks its rule.

    - `eigenvalue`: the largest eigenvalue of the Hessian of the arch loss with respect to the alphas, plus the weight
      decay of the alphas' optimiser, which is on the Hessian's diagonal in the official code of RobustDARTS (automl/
      RobustDARTS: src/search/analyze.py). At the present weights, on the last arch batch of an epoch.
    - `skips`: how many choices of the derived architecture are answered by a skip connection.
    - `entropy`: of the mixing weights, in nats, the mean over the choices.
    - `gap`: the score of the supernet less that of its discretised self, as in `Diagnostics`.

    A rule is a number, which `skips`, `gap` and `eigenvalue` may not exceed and `entropy` may not fall below, or an object
    such as `Rise`. What is done when one is broken:

    - `warn`: it is said, once until the rule has been obeyed again. The run is the same run, bit by bit.
    - `stop`: the search ends, with the weights, alphas and architecture of the epoch that the rule returns to.
    - `roll_back`: weights, alphas and optimisers become those of that epoch, the weight decay of the weights is
      multiplied, and the schedule of the learning rate begins anew and ends with the run. Epochs continue to count: each
      is in the run's files once, and the search takes no more of them than planned. RobustDARTS with adaptive
      regularisation (DARTS-ADA, arXiv 1909.09656) does this for the eigenvalue. Its official code instead counts from the
      epoch returned to, so that the search takes longer, and stays on the learning rates that these epochs had before.
      By default the weight decay is multiplied by 10 up to 0.03, as the script of the official code has it
      (scripts/DARTS-ADA_search.sh; the defaults of its arguments are 3 and 0.0243). Once it is there, or in the last
      epoch, a broken rule warns, or stops.

    Where no epoch can be returned to, a broken rule warns. After a return no earlier epoch is returned to.

    To return it needs states of past epochs: `checkpoints/epoch_{N}.ckpt`, of as many epochs as the rules may still return
    to (6 readings for the default rule) and a few more, so that a run that is resumed from its last checkpoint or the one
    before finds them.

    Lightning calls a `Checkpoint` after other callbacks and the module: the files of an epoch are those of its training,
    and the checkpoint of the run, written next, has what the guard did.

    Args:
        action: `warn`, `stop` or `roll_back`.
        eigenvalue: its rule; None watches none. So for the others.
        skips: its rule.
        entropy: its rule.
        gap: its rule.
        eigenvalue_every_n_epochs: epochs between two eigenvalues, from epoch 0 on.
        gap_batches: validation batches for the gap.
        earliest_epoch: the first that may be returned to.
        decay_factor: by which `roll_back` multiplies the weight decay.
        largest_decay: that it multiplies it to.

    Attributes:
        facts: what was measured, judged and done, in primitives, for the run's record.
        stopping_reason_message: why the search ended early, or None.
    """

    def __init__(
        self,
        action: str = "stop",
        *,
        eigenvalue: Rule | float | None = None,
        skips: Rule | float | None = None,
        entropy: Rule | float | None = None,
        gap: Rule | float | None = None,
        eigenvalue_every_n_epochs: int = 1,
        gap_batches: int = 4,
        earliest_epoch: int = 10,
        decay_factor: float = 10.0,
        largest_decay: float = 0.03,
    ) -> None:
        if action not in ACTIONS:
            raise unknown("action", action, ACTIONS)
        for name, count in (("eigenvalue_every_n_epochs", eigenvalue_every_n_epochs), ("gap_batches", gap_batches)):
            if count < 1:
                raise must_be(name, "1 or more", count)
        if earliest_epoch < 0:
            raise must_be("earliest_epoch", "0 or more", earliest_epoch)
        if not 1 < decay_factor < float("inf"):
            raise must_be("decay_factor", "above 1", decay_factor)
        if not 0 < largest_decay < float("inf"):
            raise must_be("largest_decay", "above 0", largest_decay)
        given = {"eigenvalue": eigenvalue, "skips": skips, "entropy": entropy, "gap": gap}
        self.rules = {name: _rule(name, rule) for name, rule in given.items() if rule is not None}
        if not self.rules:
            raise ConfigError(f"a guard must watch one signal or more: {', '.join(SIGNALS)}")
        self.action = action
        self.every = eigenvalue_every_n_epochs
        self.earliest = earliest_epoch
        self.decay_factor, self.largest_decay = decay_factor, largest_decay
        self.facts: dict[str, Any] = {"action": action, "signals": {}, "events": [], "returned_to": None}
        self.stopping_reason_message: str | None = None
        self._series: dict[str, list[Reading]] = {name: [] for name in self.rules}
        self._broken: set[str] = set()  # rules that were broken after the last reading
        self._returned: int | None = None  # the epoch that was returned to last
        self._needed: list[list[int]] = []  # epochs that the last checkpoints of the run may return to
        self._gap = GapMeter(gap_batches if "gap" in self.rules else 0)
        self._eigenvalue: float | None = None
        self._scores: float | None = None

    # Before the training.

    def check(self, module: SearchModule, trainer: L.Trainer) -> None:
        """Raise a `ConfigError` if a search has not what the guard is to watch or to change.

        Args:
            module: of the search, with its optimisers configured.
            trainer: of the search.
        """
        relaxation = module.method.relaxation
        if "eigenvalue" in self.rules and not relaxation.second_order:
            raise ConfigError(
                f"eigenvalue must be null with the relaxation {type(relaxation).__name__}, whose mixing weights have no "
                f"second derivative; a guard can watch {', '.join(name for name in SIGNALS if name != 'eigenvalue')}",
                argument="eigenvalue",
            )
        candidates = module.net.candidates().values()
        if "skips" in self.rules and not any(name in SKIPS for names in candidates for name in names):
            raise must_be("skips", f"null in a space without {' or '.join(sorted(SKIPS))}", "a rule")
        if "gap" in self.rules and trainer.limit_val_batches == 0:
            raise must_be("gap", "null without validation batches", "a rule")
        if self.action == "roll_back" and not module.weight_decay():
            raise must_be("action", "warn or stop where the weights have no weight decay to raise", self.action)

    def in_words(self, epochs: int) -> str:
        """Return what the guard does in a search of so many epochs."""
        verb = {"warn": "warns", "stop": "stops the search", "roll_back": "rolls back"}[self.action]
        lines = []
        for name, rule in self.rules.items():
            first = rule.first_epoch(self.earliest, self.every if name == "eigenvalue" else 1)
            too_late = f"cannot act: epoch {first} is the first that could, the last is {epochs - 1}"
            when = f"from epoch {first} on" if first < epochs else too_late
            lines.append(f"{verb} if {rule.in_words(SIGNALS[name])} ({when})")
        return "\n".join(lines)

    # What a checkpoint has.

    def state_dict(self) -> dict[str, Any]:
        """Return the readings and what was done."""
        return {
            "facts": copy.deepcopy(self.facts),
            "series": {name: [list(reading) for reading in series] for name, series in self._series.items()},
            "broken": sorted(self._broken),
            "returned": self._returned,
            "needed": copy.deepcopy(self._needed),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with those of a checkpoint; what is watched and done is as this guard was told."""
        for name in ("signals", "events"):
            self.facts[name] = copy.deepcopy(state_dict["facts"][name])
        for name in self.rules:
            self._series[name] = [Reading(int(e), float(v)) for e, v in state_dict["series"].get(name, [])]
        self._broken = set(state_dict["broken"]) & set(self.rules)
        self._returned = state_dict["returned"]
        self._needed = copy.deepcopy(state_dict["needed"])

    # Measuring.

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what was measured in the epoch before."""
        self._eigenvalue = self._scores = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an epoch's last step, compute the eigenvalue if it is due; not while the alphas are frozen."""
        assert isinstance(pl_module, SearchModule)
        if "eigenvalue" not in self.rules or not trainer.is_last_batch or trainer.current_epoch % self.every:
            return
        if not pl_module.is_frozen:
            self._eigenvalue = Measurements.of(trainer).eigenvalue(pl_module, batch, batch_idx)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Score a batch for the gap."""
        assert isinstance(pl_module, SearchModule)
        self._gap.add(trainer, pl_module, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the gap."""
        scores = self._gap.take()
        self._scores = None if scores is None else scores.gap

    def _measured(self, module: SearchModule) -> dict[str, float]:
        """Return what this epoch's readings are."""
        expected = module.mixing_weights()
        found = {"eigenvalue": self._eigenvalue, "gap": self._scores, "entropy": alpha_entropy(expected)}
        if "skips" in self.rules:
            found["skips"] = skips(module.derive(), module.net.by_name(expected))
        return {name: float(value) for name in self.rules if (value := found[name]) is not None}

    # Judging and acting.

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge what was measured, act, say what was done, and keep the states that may be returned to."""
        assert isinstance(pl_module, SearchModule)
        epoch = trainer.current_epoch
        values: dict[str, float] = {}
        broken: dict[str, Verdict] = {}
        for name, value in self._measured(pl_module).items():
            self._series[name].append(Reading(epoch, value))
            verdict = self._judge(name)
            self._note(name, value, verdict)
            values[f"guard/{name}"] = value
            if verdict is not None:
                values |= {f"guard/{name}_judged": verdict.judged, f"guard/{name}_limit": verdict.limit}
            if verdict is None or not verdict.broken:
                self._broken.discard(name)
            else:
                broken[name] = verdict
        if broken:
            self._act(trainer, pl_module, broken)
        self._broken |= broken.keys() if not self._acted_in(epoch) else set()
        log_row(trainer, last_step(trainer), values | {"guard/weight_decay": pl_module.weight_decay()})
        if self.action != "warn":
            self._keep(trainer)

    def _judge(self, name: str) -> Verdict | None:
        """Return a rule's verdict. States before the one that was returned to are not there any more."""
        verdict = self.rules[name].judge(self._series[name], self.earliest)
        if verdict is None or verdict.epoch is None or self._returned is None:
            return verdict
        return verdict._replace(epoch=max(verdict.epoch, self._returned))

    def _acted_in(self, epoch: int) -> bool:
        events = self.facts["events"]
        return bool(events) and events[-1]["epoch"] == epoch and events[-1]["action"] != "warn"

    def _note(self, name: str, value: float, verdict: Verdict | None) -> None:
        columns = self.facts["signals"].setdefault(name, {"epochs": [], "values": [], "judged": [], "limits": []})
        columns["epochs"].append(self._series[name][-1].epoch)
        columns["values"].append(value)
        columns["judged"].append(None if verdict is None else verdict.judged)
        columns["limits"].append(None if verdict is None else verdict.limit)

    def _act(self, trainer: L.Trainer, module: SearchModule, broken: Mapping[str, Verdict]) -> None:
        """Do what is to be done about broken rules, and say it."""
        epoch = trainer.current_epoch
        left = cast(int, trainer.max_epochs) - epoch - 1
        because = "; ".join(self.rules[name].reason(SIGNALS[name], verdict) for name, verdict in broken.items())
        targets = [verdict.epoch for verdict in broken.values() if verdict.epoch is not None]
        event: dict[str, Any] = {"epoch": epoch, "signals": list(broken), "action": "warn", "returned_to": None}
        before = module.weight_decay()
        raised = min(before * self.decay_factor, self.largest_decay)
        if math.isclose(raised, self.largest_decay):  # a product may miss it by a rounding
            raised = self.largest_decay
        if self.action == "warn":
            then = "the search continues"
        elif not targets:
            then = f"the search continues, since no epoch from {self.earliest} on obeyed"
        elif self.action == "roll_back" and left and raised <= before:
            then = f"the search continues, since the weight decay has reached its largest value, {before:g}"
        else:
            target = min(targets)
            event["returned_to"] = self._returned = target
            self._restore(trainer, module, target)
            for series in self._series.values():
                series[:] = [reading for reading in series if reading.epoch <= target]
            if self.action == "roll_back" and left:
                event |= {"action": "roll_back", "weight_decay": raised}
                module.set_weight_decay(raised)
                module.restart_schedule(epoch + 1)
                then = (
                    f"back to the state after epoch {target}, with a weight decay of {raised:g} (before: {before:g}) and a "
                    f"new schedule for the {left} epoch{'s' if left > 1 else ''} left"
                )
            else:
                event["action"] = "stop"
                self.facts["returned_to"] = target
                trainer.should_stop = True
                self.stopping_reason_message = f"{because}, after epoch {epoch}"
                then = f"the search ends with the state after epoch {target}"
        if event["action"] == "warn" and self._broken >= broken.keys():
            return  # it has been said
        event["text"] = f"after epoch {epoch}, {because}: {then}"
        self.facts["events"].append(event)
        if event["action"] != "warn":
            self._broken.clear()
        if processes.rank() == 0:
            bar = trainer.progress_bar_callback
            (say if bar is None else bar.print)(f"guard: {event['text']}")

    def _restore(self, trainer: L.Trainer, module: SearchModule, epoch: int) -> None:
        """Take weights, alphas, buffers and optimisers of a past epoch."""
        checkpoint = trainer.strategy.load_checkpoint(_files(trainer).state(epoch))
        trainer.strategy.load_model_state_dict(checkpoint)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        module.lay_out_optimizers()

    def _keep(self, trainer: L.Trainer) -> None:
        """Write the state of this epoch if it may be returned to, and remove those that no checkpoint will return to."""
        files, epoch = _files(trainer), trainer.current_epoch
        may = {
            e for name, rule in self.rules.items() for e in rule.may_return(self._series[name]) if e >= self.earliest
        }
        if self._returned is not None:
            may = {max(e, self._returned) for e in may}
        self._needed = [*self._needed, sorted(may)][-_PAST:]
        if epoch in may and epoch != self._returned:
            trainer.save_checkpoint(files.state(epoch))
        if processes.rank() == 0:
            for number, path in files.states():
                if not any(number in epochs for epochs in self._needed):
                    path.unlink(missing_ok=True)


def guard_of(trainer: L.Trainer) -> Guard | None:
    """Return the guard of a trainer, or None."""
    return next((callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Guard)), None)


def _files(trainer: L.Trainer) -> RunFolder:
    return RunFolder(trainer.default_root_dir)


def _rule(name: str, given: Any) -> Rule:
    """Return a rule, made of a number if need be."""
    if hasattr(given, "judge"):
        return given
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise must_be(name, "a number, null, or a rule such as src.callbacks.rules.Rise", given)
    return Limit(float(given), above=name != "entropy")
