"""The trainings that a suite asks for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from dpk_det.engine.teacher_accuracy import TEACHER_RESULTS
from dpk_det.errors import find


@dataclass(frozen=True)
class Plan:
    """The trainings of a suite.

    Attributes:
        suite: what they are for. seeds: of the students.
        teachers: those that are trained, by name. methods: name to seed to training.
        evaluations: of the teachers that are there already and that a method learns from, on the
            datasets of the first such method, by name.
    """

    suite: Suite
    seeds: tuple[int, ...]
    teachers: dict[str, Run]
    methods: dict[str, dict[int, Run]]
    evaluations: dict[str, Run] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        """All trainings in the order in which to start them.

        Teachers, since others wait for them; students that wait for none; then seed by seed, so
        that what is interrupted has about as many seeds of each method.
        """
        students = [runs[seed] for seed in self.seeds for runs in self.methods.values()]
        students.sort(key=lambda run: bool(run.after))  # keeps the order otherwise
        return [*self.teachers.values(), *self.evaluations.values(), *students]

    @property
    def rows(self) -> dict[str, dict[int | str, Run]]:
        """Name to seed to training, teachers first, as the suite has them.

        In place of a seed the teachers that are there already have "given".
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
        """Name of the first method that learns from a teacher."""
        return next(
            (name for name in self.methods if self.suite.methods[name].teacher == teacher), None
        )


def plan(suite: Suite, folder: Path, seeds: Sequence[int] = (), only: Collection[str] = ()) -> Plan:
    """The trainings that a suite asks for.

    Args:
        suite: what to compare. folder: where the trainings go, a folder each.
        seeds: in place of the suite's own. only: names of methods to restrict to, with the teachers
            that these need.

    Raises:
        UserError: for bad seeds, or a method that the suite lacks.
    """
    seeds = check_seeds(seeds or suite.seeds, "The value of --seeds")
    check_folders(suite, seeds)
    for name in only:
        find(suite.methods, name, f"method in {suite.path}")
    chosen = {n: m for n, m in suite.methods.items() if not only or n in only}
    needed = set(suite.teachers)
    if only:
        needed = {suite.start, *(method.teacher for method in chosen.values())}
    teachers = {
        name: Run(
            name,
            teacher.config,
            folder / name,
            overrides({**teacher.opts, "SEED": teacher.seed}),
            row=name,
        )
        for name, teacher in suite.teachers.items()
        if name in needed and teacher.weights is None
    }
    methods = {
        name: {
            seed: Run(
                f"{name}-seed{seed}",
                method.config,
                folder / f"{name}-seed{seed}",
                overrides(
                    {
                        **method.opts,
                        **_start_opts(suite, teachers),
                        **_teacher_opts(suite, method, teachers),
                        "SEED": seed,
                    }
                ),
                tuple(x for x in (suite.start, method.teacher) if x in teachers),
                row=name,
            )
            for seed in seeds
        }
        for name, method in chosen.items()
    }
    todo = Plan(suite, seeds, teachers, methods)
    for name, teacher in suite.teachers.items():
        if teacher.weights is not None and (learner := todo.learner(name)):
            student = methods[learner][seeds[0]]
            todo.evaluations[name] = Run(
                name,
                student.config,
                folder / name,
                student.opts,
                row=name,
                mode="--eval-teacher",
                results_file=TEACHER_RESULTS,
            )
    return todo


def _teacher_opts(suite: Suite, method: Method, trained: Mapping[str, Run]) -> dict[str, Any]:
    if method.teacher is None:
        return {}
    teacher = suite.teachers[method.teacher]
    # built as it was trained
    values = (teacher.config, _weights(teacher, trained), list(overrides(teacher.opts)))
    return dict(zip(OF_TEACHER, values, strict=True))


def _start_opts(suite: Suite, trained: Mapping[str, Run]) -> dict[str, Any]:
    if suite.start is None:
        return {}
    return {START: _weights(suite.teachers[suite.start], trained)}


def _weights(teacher: Teacher, trained: Mapping[str, Run]) -> str:
    if teacher.weights is not None:
        return teacher.weights
    return str(trained[teacher.name].folder / "model_final.pth")


def overrides(opts: Mapping[str, Any]) -> tuple[str, ...]:
    """Config keys and their values as they stand on the command line."""
    # yacs reads these texts as it reads those in a config file: "(60, 80)" and "1e-4", which YAML
    # takes for texts, come out as a tuple and a number.
    return tuple(text for key, value in opts.items() for text in (key, str(value)))
