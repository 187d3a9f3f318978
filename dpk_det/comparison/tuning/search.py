"""The search for the config values with which a method does best, by any objective.

Optuna proposes values and ends hopeless trials. Several processes may share a search: its study is
in a file, and locks protect actions that must not happen twice. A lock ends with its process, so
that a trial whose process was killed is found at once, and made again.

This module is imported only for tuning, because it needs the package optuna.
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
"""``objective(params, report)`` returns a value, the higher the better, or None for no value. It
may call ``report(step, value)``, which raises an exception to end the trial early; the objective
must not catch it."""

ROUNDS = 3
"""Maximum number of times that ranges are widened."""

NO_VALUE = "no_value"
"""User attribute of a trial whose objective returned None."""

_SECONDS_BETWEEN_LOOKS = 0.5
_WIDENED = "widened"  # user attribute of a study: config key to range, per round


@dataclass
class Search:
    """A search and its state.

    Attributes:
        study: study that maximises; its pruner ends trials.
        folder: folder for the locks of this study alone.
        space: values to choose from, before any range is widened.
        trials: number of trials before a range is widened.
        seed: seed of the proposals, which depend only on it and on earlier trials.
        allowed: raises a UserError for invalid values; no range is widened to them.
        check: called between trials and while waiting for others' trials; may raise, to stop.
        say: gets the lines of progress.
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
        """Make all missing trials, and wait for the trials of other processes.

        If the best value is at the edge of its range, that side is widened and half as many trials
        more are made, up to :data:`ROUNDS` times.

        Args:
            objective: called in threads.
            workers: number of threads.

        Raises:
            Exception: whatever the objective raises, after the other workers' trials have ended.
                That trial is made again when the search is run again.
        """
        self._ends = False
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._work, objective) for _ in range(workers)]
        for future in futures:
            future.result()

    @property
    def ranges(self) -> Space:
        """The values to choose from now."""
        ranges = dict(self.space)
        for wider in self.rounds:
            ranges |= wider
        return ranges

    @property
    def best(self) -> FrozenTrial | None:
        """The best complete trial, or None."""
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
        # Failed trials were lost with their process, and made again.
        return [t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.FAIL]

    @property
    def rounds(self) -> list[dict[str, Range]]:
        """Config keys and their wider ranges, for each round of widening."""
        rounds = self.study.user_attrs.get(_WIDENED, [])
        return msgspec.convert(rounds, list[dict[str, Range]])

    # -------------------------------------------------------------- one worker

    def _work(self, objective: Objective) -> None:
        while not self._ends and self._step(objective):
            pass

    def _step(self, objective: Objective) -> bool:
        """Make a trial, or wait for others' trials; return whether the search goes on."""
        with contextlib.ExitStack() as stack:
            try:
                self.check()
                with locked(self.folder / "claims.lock"):
                    trial = self._claim(stack)
                    if trial is None and all(t.state.is_finished() for t in self.made):
                        return self._widen()
                if trial is None:
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                else:
                    self._try(trial, objective)
            except BaseException:
                self._ends = True  # while the trial's lock is held, or a worker makes it again
                raise
        return True

    def _claim(self, stack: contextlib.ExitStack) -> optuna.Trial | None:
        """Return the next trial, or None; ``stack`` then holds the lock that claims it."""
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
            with locked(self._lock_of(trial.number), wait=False):  # its process is gone
                if self._ends:  # or it has just failed here
                    return
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
    """Return how many trials are made before results guide proposals and early ends."""
    return max(3, trials // 3)


def show(value: Any) -> str:
    """Format a value, or the values of a key, for people."""
    if isinstance(value, Range):
        return f"{show(value.low)} to {show(value.high)}"
    if isinstance(value, Choices):
        return ", ".join(map(show, value.values))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a file lock that one thread of one process may hold; it ends with the process.

    Args:
        path: file to lock; its folder is made.
        wait: whether to wait for the lock.

    Raises:
        portalocker.LockException: when another holds the lock and ``wait`` is false.
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
