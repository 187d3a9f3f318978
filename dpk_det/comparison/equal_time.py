"""Equal-time controls: plain students that train for the time that distillation takes."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from operator import truediv
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

import msgspec
import torch
from detectron2.config import CfgNode

from dpk_det.architectures import distils
from dpk_det.comparison.plan import plan
from dpk_det.comparison.run import Run
from dpk_det.comparison.suite import Method, Suite
from dpk_det.comparison.suite_configs import load_as_is, load_configs
from dpk_det.engine.launch import use_device
from dpk_det.engine.machine import describe_machine
from dpk_det.engine.step_time import LIMIT, step_times
from dpk_det.errors import UserError
from dpk_det.files import write_whole

STEP_TIMES = "step_times.json"
"""File beside the report with the measured step times and the resulting schedules."""
Measure = Callable[[Mapping[str, Run], Mapping[str, str]], dict[str, list[float]]]

T = TypeVar("T")

LEAST = 1.02
"""Ratio of training times below which a baseline gets no control."""


def with_controls(
    suite: Suite,
    output: Path,
    slot: Mapping[str, str] | None,
    say: Callable[[str], None] = print,
    measure: Measure = lambda runs, slot: apart(step_times, runs, slot),
) -> Suite:
    """Add the controls that ``equal_time`` asks for to a suite.

    A control is a baseline with a longer schedule: it trains for the same time as the suite's
    longest training that distils (``equal_time: each``: one control for each method that is
    measured against the baseline). The step times are measured side by side, before any training,
    and kept in ``step_times.json``. They are measured again only if a config has changed.

    Args:
        suite: suite as read from its file.
        output: folder of the report.
        slot: environment of the first worker, whose device runs the measurement. None: measure
            nothing; without the file, return the suite unchanged.
        say: gets a line before the measurement.
        measure: takes runs by name and an environment, and returns the seconds of each round.
            Default: :func:`~dpk_det.engine.step_time.step_times` in its own process.

    Raises:
        UserError: for a mistake in a config, before anything is measured; when the measuring
            process is killed.
    """
    learners = _learners(suite)
    if not suite.equal_time or not learners:
        return suite
    todo = plan(suite, output / "runs")
    names = list(dict.fromkeys([*learners, *(x for group in learners.values() for x in group)]))
    runs = {name: next(iter(todo.methods[name].values())) for name in names}
    configs = {name: cfg for name, cfg in load_configs(todo, trains=False).items() if name in runs}
    found = _read(output / STEP_TIMES, configs)
    if found is None:
        if slot is None:
            return suite
        load_configs(todo, trains=True)  # finds mistakes in a row before measuring
        say(
            f"Measuring a step of {', '.join(names)}, side by side, which takes about "
            f"{LIMIT / 60:.0f} minutes at most, and more where a step takes seconds"
        )
        found = _summarise(measure(runs, slot), configs)
    controls = _controls(suite, learners, configs, found["ratios"])
    found["controls"] = {
        name: {"baseline": base, "as_long_as": of, "opts": control.opts}
        for name, (base, of, control) in controls.items()
    }
    write_whole(output / STEP_TIMES, json.dumps(found, indent=2) + "\n")
    # The schedules follow from medians of ratios, so the reported times do too.
    base = suite.baseline if suite.baseline in found["ratios"] else names[0]
    one = found["seconds"][base]["median"]
    seconds = {name: one * ratios[base] for name, ratios in found["ratios"].items()}
    seconds |= {name: seconds[base] for name, (base, _, _) in controls.items()}
    suite = msgspec.structs.replace(suite, step_seconds=seconds)
    return _add(suite, learners, controls)


def _learners(suite: Suite) -> dict[str, list[str]]:
    """Map each baseline to the methods that are measured against it and name no control."""
    groups: dict[str, list[str]] = {}
    for name, method in suite.methods.items():
        if method.baseline is not None and method.control is None:
            groups.setdefault(method.baseline, []).append(name)
    return groups


# ------------------------------------------------------------------ step times


def apart(
    function: Callable[[dict[str, CfgNode]], T], runs: Mapping[str, Run], slot: Mapping[str, str]
) -> T:
    """Call a function with the configs of runs in its own process, and return its result.

    Args:
        function: takes configs by name; defined in a module.
        runs: runs by name.
        slot: the environment of a training.

    Raises:
        UserError: when that process is killed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _enter, (dict(slot),)) as pool:
        try:
            return pool.submit(_apply, function, dict(runs)).result()
        except BrokenProcessPool as e:
            raise UserError(
                f"The process that measures {', '.join(runs)} was killed, as happens "
                "when memory runs out: give it more, or compare fewer at a time."
            ) from e


def _summarise(taken: Mapping[str, list[float]], configs: Mapping[str, CfgNode]) -> dict[str, Any]:
    return {
        "configs": {name: _digest(cfg) for name, cfg in configs.items()},
        "seconds": {name: _spread(x) for name, x in taken.items()},
        # Other load on the machine hardly changes the median of the ratios per round.
        "ratios": {
            name: {over: median(map(truediv, x, y)) for over, y in taken.items()}
            for name, x in taken.items()
        },
        "machine": describe_machine(),
    }


def _enter(slot: dict[str, str]) -> None:
    os.environ.update(slot)
    torch.set_num_threads(int(slot.get("OMP_NUM_THREADS", torch.get_num_threads())))


def _apply(function: Callable[[dict[str, CfgNode]], T], runs: dict[str, Run]) -> T:
    configs = {name: load_as_is(run) for name, run in runs.items()}
    for cfg in configs.values():
        use_device(cfg)
    return function(configs)


def _spread(values: Sequence[float]) -> dict[str, float]:
    q1, middle, q3 = quantiles(values)
    return {"median": middle, "q1": q1, "q3": q3}


def _digest(cfg: CfgNode) -> str:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRACKER.NAME = cfg.TRACKER.PROJECT = ""  # where curves are logged
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def _read(path: Path, configs: Mapping[str, CfgNode]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
        same = found["configs"] == {name: _digest(cfg) for name, cfg in configs.items()}
        same &= configs.keys() <= found["seconds"].keys() & found["ratios"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if same else None


# ------------------------------------------------------------------ schedules


def _controls(
    suite: Suite,
    learners: Mapping[str, Sequence[str]],
    configs: Mapping[str, CfgNode],
    ratios: Mapping[str, Mapping[str, float]],
) -> dict[str, tuple[str, str, Method]]:
    """Map each control's name to its baseline, the method whose time it gets, and the control."""
    others = [name for group in learners.values() for name in group]
    # Take only methods that distil: noise alone can make a plain step slower than another one.
    others = [name for name in others if distils(configs[name])] or others
    found = {}
    for base, group in learners.items():
        costs = {name: ratio[base] for name, ratio in ratios.items()}
        times = {name: training_time(suite, configs, name, costs) for name in configs}
        dearest = max(others, key=lambda name: times[name])
        for of in group if suite.equal_time == "each" else [dearest]:
            ratio = times[of] / times[base]
            if ratio < LEAST:
                continue
            method = suite.methods[base]
            found[f"{base}-as-long-as-{of}"] = (
                base,
                of,
                msgspec.structs.replace(
                    method,
                    name=f"{base}-as-long-as-{of}",
                    title=f"{method.title}, as long as '{suite.methods[of].title}'",
                    opts={**method.opts, **longer(configs[base], ratio)},
                    baseline=base,
                ),
            )
    return found


def training_time(
    suite: Suite,
    configs: Mapping[str, CfgNode],
    name: str,
    seconds: Mapping[str, float | None],
    steps: int | None = None,
) -> float:
    """Return the time of a training. Steps after ``DISTILL.STOP_AT`` take a plain student's time.

    Args:
        suite: its baselines say which plain student that is.
        configs: method to config.
        name: name of the method.
        seconds: method to time of a step, while it distils; the method itself must have one.
        steps: number of steps that were made; None: all.
    """
    steps, plain = configs[name].SOLVER.MAX_ITER if steps is None else steps, name
    while plain in configs and distils(configs[plain]):
        plain = suite.methods[plain].baseline
    distilling = distilling_steps(configs[name], steps)
    after = seconds.get(plain) or seconds[name]
    return distilling * seconds[name] + (steps - distilling) * after


def distilling_steps(cfg: CfgNode, steps: int) -> float:
    """Return how many of the first steps of a training distil, or all if it never does."""
    return min(steps, cfg.DISTILL.STOP_AT * cfg.SOLVER.MAX_ITER) if distils(cfg) else steps


def longer(cfg: CfgNode, ratio: float) -> dict[str, Any]:
    """Return the overrides that scale the length and the steps of a schedule by a ratio."""
    return {
        "SOLVER.MAX_ITER": round(ratio * cfg.SOLVER.MAX_ITER),
        "SOLVER.STEPS": [round(ratio * step) for step in cfg.SOLVER.STEPS],
    }


def _add(
    suite: Suite,
    learners: Mapping[str, Sequence[str]],
    controls: Mapping[str, tuple[str, str, Method]],
) -> Suite:
    """Return the suite with each control after its baseline, and named in its methods."""
    methods: dict[str, Method] = {}
    for name, method in suite.methods.items():
        for control, (base, of, _) in controls.items():
            if name in learners.get(base, ()) and (suite.equal_time is True or of == name):
                method = msgspec.structs.replace(method, control=control)
        methods[name] = method
        methods |= {new: x for new, (base, _, x) in controls.items() if base == name}
    return msgspec.structs.replace(suite, methods=methods)
