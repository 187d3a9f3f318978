"""The search for the values with which a method does best, whatever "does" is.

Optuna proposes values and ends what is hopeless. Several processes may share a search: its study
is in a file, and what must not happen twice is done under a lock. A lock ends with its process, so
that a trial whose process was killed is known at once, and made again.

This module is imported only where something is tuned, because it needs the package optuna.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import optuna
import portalocker
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from dpk_det.comparison.tuning.space import Choices, Range, Space
from dpk_det.errors import UserError

Objective = Callable[[dict[str, Any], Callable[[int, float], None]], float | None]
"""``objective(params, report)``: a value, the higher the better, or None where there is none. It
may call ``report(step, value)`` on its way, and must let pass what that raises to end it early."""

ROUNDS = 3
"""How often ranges are widened at most."""

NO_VALUE = "no_value"
"""User attribute of a trial whose objective gave None."""

_SECONDS_BETWEEN_LOOKS = 0.5
_WIDENED = "widened"  # of a study: a dict of config keys to ranges for each round


@dataclass
class Search:
    """A search, and how far it is.

    Attributes:
        study: that maximises; its pruner ends trials. folder: for its locks; of this study alone.
        space: what to choose from, at the beginning. trials: that are made before a range is
            widened. seed: of the proposals: they are a function of it and of what was tried before.
        allowed: raises a UserError for values that cannot be meant; no range is widened to such.
        check: is called between trials and while others' are waited for; may raise, to stop.
        say: gets a line for what is worth it.
    """

    study: optuna.Study
    folder: Path
    space: Space
    trials: int
    seed: int
    allowed: Callable[[Mapping[str, Any]], Any] = lambda params: None
    check: Callable[[], Any] = lambda: None
    say: Callable[[str], Any] = print
    _ends: bool = field(default=False, init=False)
    _refused: set[str] = field(default_factory=set, init=False)

    def run(self, objective: Objective, workers: int = 1) -> None:
        """Make all trials that are not made yet, and wait for those that others make.

        Where the best value is at the edge of its range, that side is widened and half as many
        trials more are made, up to :data:`ROUNDS` times.

        Args:
            objective: is called in threads. workers: how many of these.

        Raises:
            Exception: what the objective raises, when the other workers have ended their trials.
                That trial is made again when the search is run again.
        """
        self._ends = False
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._work, objective) for _ in range(workers)]
        for future in futures:
            future.result()

    @property
    def ranges(self) -> Space:
        """What is chosen from now."""
        ranges = dict(self.space)
        for wider in self.rounds:
            ranges |= wider
        return ranges

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial that was made to its end."""
        done = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        return max(done, key=lambda trial: trial.value, default=None)

    @property
    def edges(self) -> dict[str, str]:
        """Config keys whose best value is at an edge of its range, and the side: low or high."""
        if self.best is None:
            return {}
        ranges = {k: v for k, v in self.ranges.items() if isinstance(v, Range)}
        sides = {key: values.edge(self.best.params[key]) for key, values in ranges.items()}
        return {key: side for key, side in sides.items() if side}

    @property
    def made(self) -> list[FrozenTrial]:
        """The trials that count, in their order."""
        # those that failed were lost with their process, and made again
        return [t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.FAIL]

    @property
    def rounds(self) -> list[dict[str, Range]]:
        """Config keys and their wider ranges, of each time that any was widened."""
        rounds = self.study.user_attrs.get(_WIDENED, [])
        return msgspec.convert(rounds, list[dict[str, Range]])

    # -------------------------------------------------------------- one worker

    def _work(self, objective: Objective) -> None:
        try:
            while not self._ends and self._step(objective):
                pass
        except BaseException:
            self._ends = True
            raise

    def _step(self, objective: Objective) -> bool:
        """Make a trial, or wait for those of others; whether that was not the end."""
        self.check()
        with contextlib.ExitStack() as stack:
            with locked(self.folder / "claims.lock"):
                trial = self._claim(stack)
                if trial is None and all(t.state.is_finished() for t in self.made):
                    return self._widen()
            if trial is None:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            else:
                self._try(trial, objective)
        return True

    def _claim(self, stack: contextlib.ExitStack) -> optuna.Trial | None:
        """The next trial, if one is to be made; ``stack`` holds the lock that says who makes it."""
        for trial in self.made:
            if trial.state == TrialState.RUNNING:
                self._take_back(trial)
        made = self.made
        waiting = any(trial.state == TrialState.WAITING for trial in made)
        budget = self.trials + len(self.rounds) * math.ceil(self.trials / 2)
        if not waiting and len(made) >= budget:
            return None
        self.study.sampler = optuna.samplers.TPESampler(
            seed=self.seed + len(made), n_startup_trials=startup(self.trials)
        )
        trial = self.study.ask({k: _distribution(v) for k, v in self.ranges.items()})
        stack.enter_context(locked(self._lock_of(trial.number)))
        return trial

    def _take_back(self, trial: FrozenTrial) -> None:
        with contextlib.suppress(portalocker.LockException):
            with locked(self._lock_of(trial.number), wait=False):  # nobody makes it any more
                failed = {"state": TrialState.FAIL, "skip_if_finished": True}
                if self.study.tell(trial.number, **failed).state == TrialState.FAIL:
                    self.study.enqueue_trial(trial.params)

    def _lock_of(self, number: int) -> Path:
        return self.folder / f"trial-{number}.lock"

    def _try(self, trial: optuna.Trial, objective: Objective) -> None:
        def report(step: int, value: float) -> None:
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned(f"ended after step {step}, at {value:.2f}")

        shown = ", ".join(f"{key} {show(value)}" for key, value in trial.params.items())
        try:
            value = objective(trial.params, report)
            if value is not None:
                self.study.tell(trial, value)
                return
            trial.set_user_attr(NO_VALUE, True)
        except optuna.TrialPruned as e:
            self.say(f"{self.study.study_name}, {shown}: {e}, because others were better by then")
        self.study.tell(trial, state=TrialState.PRUNED)

    def _widen(self) -> bool:
        if len(self.rounds) == ROUNDS:
            return False
        wider, ranges = {}, self.ranges
        for key, side in self.edges.items():
            value, new = self.best.params[key], ranges[key].widened(side)
            what = f"{self.study.study_name}: {key} is best at {show(value)}, near the {side} end"
            try:
                self.allowed({**self.best.params, key: getattr(new, side)})
            except UserError as e:
                if key not in self._refused:
                    self.say(f"{what} of its range, which cannot be wider: {e}")
                self._refused.add(key)
                continue
            if new != ranges[key]:
                wider[key] = new
                self.say(f"{what} of its range, which is now {show(new)}; more trials follow")
        if wider:
            rounds = msgspec.to_builtins([*self.rounds, wider])
            self.study.set_user_attr(_WIDENED, rounds)
        return bool(wider)


def startup(trials: int) -> int:
    """How many trials are made before others are proposed, or ended, by what these came to."""
    return max(3, trials // 3)


def show(value: Any) -> str:
    """A value, or the values of a key, for people."""
    if isinstance(value, Range):
        return f"{show(value.low)} to {show(value.high)}"
    if isinstance(value, Choices):
        return ", ".join(map(show, value.values))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a file that one thread of one process may hold; it is let go when the process ends.

    Raises:
        portalocker.LockException: when it is held and is not to be waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        at_once = portalocker.LOCK_EX | portalocker.LOCK_NB
        portalocker.lock(file, portalocker.LOCK_EX if wait else at_once)
        yield


def _distribution(values: Range | Choices) -> BaseDistribution:
    if isinstance(values, Choices):
        return CategoricalDistribution(values.values)
    kind = IntDistribution if values.whole else FloatDistribution
    return kind(values.low, values.high, log=values.log)
