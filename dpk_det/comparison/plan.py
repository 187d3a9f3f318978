"""The trainings that a suite asks for."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dpk_det.comparison.opts import overrides
from dpk_det.comparison.run import Run
from dpk_det.comparison.suite import (
    OF_TEACHER,
    START,
    Method,
    Suite,
    Teacher,
    check_folders,
    check_seeds,
)
from dpk_det.config.loading import load_config
from dpk_det.config.shipped import find_config
from dpk_det.engine.teacher_accuracy import TEACHER_RESULTS
from dpk_det.errors import UserError, find


@dataclass(frozen=True)
class Plan:
    """The trainings of a suite.

    Attributes:
        suite: the suite that asks for them.
        seeds: seeds of the students.
        teachers: name to training, for teachers that are trained.
        methods: name to seed to training.
        evaluations: name to evaluation, for teachers with given weights that a method learns from.
            The first such method defines the datasets.
    """

    suite: Suite
    seeds: tuple[int, ...]
    teachers: dict[str, Run]
    methods: dict[str, dict[int, Run]]
    evaluations: dict[str, Run] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        """All trainings in the order in which to start them.

        Teachers come first, because other runs wait for them; then students that wait for no run.
        Students go seed by seed, so that an interrupted comparison has about as many seeds of each
        method.
        """
        students = [runs[seed] for seed in self.seeds for runs in self.methods.values()]
        students.sort(key=lambda run: bool(run.after))  # keeps the order otherwise
        return [*self.teachers.values(), *self.evaluations.values(), *students]

    @property
    def rows(self) -> dict[str, dict[int | str, Run]]:
        """Name to seed to training, teachers first, in the order of the suite.

        Teachers with given weights have "given" in place of a seed.
        """
        teachers = {
            name: {teacher.seed: self.teachers[name]}
            if name in self.teachers
            else {"given": self.evaluations[name]}
            for name, teacher in self.suite.teachers.items()
            if name in self.teachers or name in self.evaluations
        }
        return {**teachers, **self.methods}

    def learner(self, teacher: str) -> str | None:
        """Return the name of the first method that learns from a teacher, or None."""
        return next(
            (name for name in self.methods if self.suite.methods[name].teacher == teacher), None
        )


def plan(suite: Suite, folder: Path, seeds: Sequence[int] = (), only: Collection[str] = ()) -> Plan:
    """Plan the trainings that a suite asks for.

    Args:
        suite: the suite.
        folder: parent of the trainings' folders.
        seeds: used instead of the suite's seeds.
        only: names of methods; plan only these, with the teachers that they need.

    Raises:
        UserError: for bad seeds, for a method that the suite lacks, or when two trainings would
            share a folder.
    """
    seeds = check_seeds(seeds or suite.seeds, "The value of --seeds")
    check_folders(suite, seeds)
    for name in only:
        find(suite.methods, name, f"method in {suite.path}")
    chosen = {n: m for n, m in suite.methods.items() if not only or n in only}
    needed = {suite.start, *(method.teacher for method in chosen.values())} if only else None
    teachers = {
        name: Run(
            name,
            teacher.config,
            folder / name,
            overrides({**teacher.opts, "SEED": teacher.seed}),
            averages=_averages(teacher),
        )
        for name, teacher in suite.teachers.items()
        if teacher.weights is None and (needed is None or name in needed)
    }
    methods = {
        name: {seed: _student(suite, method, seed, folder, teachers) for seed in seeds}
        for name, method in chosen.items()
    }
    todo = Plan(suite, seeds, teachers, methods)
    for name, teacher in suite.teachers.items():
        if teacher.weights is not None and (learner := todo.learner(name)):
            todo.evaluations[name] = replace(
                methods[learner][seeds[0]],
                name=name,
                folder=folder / name,
                after=(),
                mode="--eval-teacher",
                results_file=TEACHER_RESULTS,
            )
    return todo


def _averages(teacher: Teacher) -> bool:
    if not os.path.isfile(find_config(teacher.config)):  # accepts any text, even a too long one
        return False
    try:
        return load_config(teacher.config, overrides(teacher.opts)).SOLVER.EMA_DECAY > 0
    except UserError:  # load_configs() reports the mistake
        return False


def _student(
    suite: Suite, method: Method, seed: int, folder: Path, trained: Mapping[str, Run]
) -> Run:
    def weights(teacher: Teacher) -> str:
        return str(trained[teacher.name].weights) if teacher.weights is None else teacher.weights

    start, teacher = (suite.teachers.get(name) for name in (suite.start, method.teacher))
    opts = dict(method.opts)
    if start:
        opts[START] = weights(start)
    if teacher:  # it is built with the opts of its training
        values = (teacher.config, weights(teacher), list(overrides(teacher.opts)))
        opts |= zip(OF_TEACHER, values, strict=True)
    name = f"{method.name}-seed{seed}"
    after = tuple(x.name for x in (start, teacher) if x and x.weights is None)
    return Run(name, method.config, folder / name, overrides({**opts, "SEED": seed}), after)
