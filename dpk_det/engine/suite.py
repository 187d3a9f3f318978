"""Suites: YAML files that say which methods are compared, and the trainings that they ask for."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpk_det.distill.registry import find
from dpk_det.errors import UserError

from .runs import Run

# config keys that the comparison sets itself -> what to write in the suite in place of them
_RESERVED = {"SEED": "seeds", "OUTPUT_DIR": "--runs on the command line"}
_OF_TEACHER = ("DISTILL.TEACHER.CONFIG_FILE", "DISTILL.TEACHER.WEIGHTS", "DISTILL.TEACHER.OPTS")


@dataclass(frozen=True)
class Teacher:
    """A teacher of a suite.

    Attributes:
        name: also its folder. title: of its row. config: its file. opts: overrides of that.
        seed: of its training. weights: None: it is trained; else they are there already, a path or
            URL, or "" for those of the model zoo.
    """

    name: str
    title: str
    config: str
    opts: dict[str, Any]
    seed: int
    weights: str | None


@dataclass(frozen=True)
class Method:
    """A student of a suite.

    Attributes:
        name: begins its folders. title: of its row. config: its file.
        opts: overrides of that, those that all students share included.
        teacher: name of the teacher that it learns from; None for one of its config's own, or none.
        baseline: name of the method that its gain is measured against; None for the suite's
            baseline itself.
    """

    name: str
    title: str
    config: str
    opts: dict[str, Any]
    teacher: str | None
    baseline: str | None


@dataclass(frozen=True)
class Suite:
    """What a suite's file says.

    Attributes:
        path: of the file. title, description: of the report. seeds: of the students.
        metric: what is compared, such as "bbox/AP". secondary: a second one to show, or None.
        baseline: name of a method: gains, time and memory are relative to it.
        start: name of the teacher, itself perhaps a plain student, whose backbone all students
            start with (MODEL.BACKBONE_WEIGHTS), as detectors do with ImageNet's; None for what
            their configs say.
        teachers, methods: by name, in the order of the table.
    """

    path: Path
    title: str
    description: str
    seeds: tuple[int, ...]
    metric: str
    secondary: str | None
    baseline: str
    start: str | None
    teachers: dict[str, Teacher]
    methods: dict[str, Method]


@dataclass(frozen=True)
class Plan:
    """The trainings of a suite.

    Attributes:
        suite: what they are for. seeds: of the students.
        teachers: those that are trained, by name. methods: name to seed to training.
    """

    suite: Suite
    seeds: tuple[int, ...]
    teachers: dict[str, Run]
    methods: dict[str, dict[int, Run]]

    @property
    def runs(self) -> list[Run]:
        """All trainings in the order in which to start them.

        Teachers, since others wait for them; students that wait for none; then seed by seed, so
        that what is interrupted has about as many seeds of each method.
        """
        students = [runs[seed] for seed in self.seeds for runs in self.methods.values()]
        students.sort(key=lambda run: bool(run.after))  # keeps the order otherwise
        return [*self.teachers.values(), *students]

    @property
    def rows(self) -> dict[str, dict[int, Run]]:
        """Name to seed to training, teachers first."""
        teachers = {n: {self.suite.teachers[n].seed: run} for n, run in self.teachers.items()}
        return {**teachers, **self.methods}


def plan(suite: Suite, folder: Path, seeds: Sequence[int] = (), only: Collection[str] = ()) -> Plan:
    """The trainings that a suite asks for.

    Args:
        suite: what to compare. folder: where the trainings go, a folder each.
        seeds: in place of the suite's own. only: names of methods to restrict to, with the teachers
            that these need.

    Raises:
        UserError: for bad seeds, or a method that the suite lacks.
    """
    seeds = _check_seeds(list(seeds or suite.seeds), "The value of --seeds")
    for name in only:
        find(suite.methods, name, f"method in {suite.path}")
    chosen = {n: m for n, m in suite.methods.items() if not only or n in only}
    needed = set(suite.teachers)
    if only:
        needed = {suite.start, *(method.teacher for method in chosen.values())}
    teachers = {
        name: Run(
            name, teacher.config, folder / name, overrides({**teacher.opts, "SEED": teacher.seed})
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
            )
            for seed in seeds
        }
        for name, method in chosen.items()
    }
    return Plan(suite, seeds, teachers, methods)


def _teacher_opts(suite: Suite, method: Method, trained: Mapping[str, Run]) -> dict[str, Any]:
    if method.teacher is None:
        return {}
    teacher = suite.teachers[method.teacher]
    # built as it was trained
    values = (teacher.config, _weights(teacher, trained), list(overrides(teacher.opts)))
    return dict(zip(_OF_TEACHER, values, strict=True))


def _start_opts(suite: Suite, trained: Mapping[str, Run]) -> dict[str, Any]:
    if suite.start is None:
        return {}
    return {"MODEL.BACKBONE_WEIGHTS": _weights(suite.teachers[suite.start], trained)}


def _weights(teacher: Teacher, trained: Mapping[str, Run]) -> str:
    if teacher.weights is not None:
        return teacher.weights
    return str(trained[teacher.name].folder / "model_final.pth")


def overrides(opts: Mapping[str, Any]) -> tuple[str, ...]:
    """Config keys and their values as they stand on the command line."""
    # yacs reads these texts as it reads those in a config file: "(60, 80)" and "1e-4", which YAML
    # takes for texts, come out as a tuple and a number.
    return tuple(text for key, value in opts.items() for text in (key, str(value)))


# ------------------------------------------------------------------ reading


def read_suite(path: Path) -> Suite:
    """Read a suite and check all in it that can be checked without its configs.

    Raises:
        UserError: when there is no such file, it is no YAML, or something in it has the wrong name
            or type, naming file and key.
    """
    if not path.is_file():
        raise UserError(
            f"There is no suite {path}: give a path to one, such as configs/compare/demo.yaml."
        )
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as e:
        raise UserError(f"The suite {path} is no YAML ({' '.join(str(e).split())}).") from e
    node = _Node(path, "", content)
    node.check_keys(
        "title description seeds common start teachers baseline methods metric secondary".split(),
        required=["methods", "baseline"],
    )
    common = _opts(node.child("common"))
    teachers = {name: _teacher(name, child) for name, child in node.child("teachers").children()}
    method_nodes = dict(node.child("methods").children())
    if not method_nodes:
        raise UserError(f"methods of {path} is empty: name what is to be compared.")
    baseline = node.name_in("baseline", method_nodes)
    start = node.name_in("start", teachers)
    metric = node.text("metric", "bbox/AP")
    suite = Suite(
        path,
        node.text("title", path.stem),
        node.text("description", ""),
        _check_seeds(node.get("seeds", [1]), f"seeds of {path}"),
        metric,
        # AP goes with AP50; of other metrics nothing is known
        node.text("secondary", f"{metric}50" if metric.endswith("/AP") else None),
        baseline,
        start,
        teachers,
        {
            name: _method(name, child, common, teachers, method_nodes, baseline, start is not None)
            for name, child in method_nodes.items()
        },
    )
    _check_names(suite)
    return suite


def _check_names(suite: Suite) -> None:
    folders = {f"{name}-seed{seed}" for name in suite.methods for seed in suite.seeds}
    if both := sorted(set(suite.teachers) & (set(suite.methods) | folders)):
        raise UserError(
            f"{both[0]} of {suite.path} names both a teacher and a method: rename one of them."
        )
    titles: set[str] = set()
    for entry in (*suite.teachers.values(), *suite.methods.values()):
        if entry.title in titles:
            raise UserError(
                f"The title '{entry.title}' stands twice in {suite.path}: change one of them."
            )
        titles.add(entry.title)


@dataclass(frozen=True)
class _Node:
    """A mapping in a suite, which knows where it stands."""

    path: Path
    key: str
    content: Any

    def __post_init__(self) -> None:
        if not isinstance(self.content, dict):
            raise self.error("must hold KEY: VALUE lines")

    @property
    def place(self) -> str:
        """Where this mapping stands."""
        return f"{self.key} of {self.path}" if self.key else str(self.path)

    def error(self, what: str, key: str = "") -> UserError:
        """What is wrong with this mapping, or with one of its keys."""
        return UserError(
            f"{self.where(key)} of {self.path} {what}." if key else f"{self.place} {what}."
        )

    def where(self, key: str = "") -> str:
        """Dotted name of a key."""
        return ".".join(part for part in (self.key, key) if part)

    def check_keys(self, known: Iterable[str], required: Iterable[str]) -> None:
        """Raise UserError unless all keys are known and those required are there."""
        known = dict.fromkeys(known)
        for key in self.content:
            find(known, key, f"key in {self.place}")
        for key in required:
            if key not in self.content:
                raise self.error(f"lacks the key {key}: add it")

    def get(self, key: str, default: Any) -> Any:
        """The value of a key; the default where the key is absent or empty."""
        value = self.content.get(key)
        return default if value is None else value

    def child(self, key: str) -> "_Node":
        """The mapping below a key, empty where the key is absent."""
        return _Node(self.path, self.where(key), self.get(key, {}))

    def children(self) -> Iterable[tuple[str, "_Node"]]:
        """Name and mapping of each entry; the names must do as those of folders."""
        for name in self.content:
            if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
                raise self.error(
                    f"holds the name {name!r}: names become folders, so write letters, digits, "
                    "- and _ (in quotes where YAML takes them for something else)"
                )
            yield name, self.child(name)

    def text(self, key: str, default: str | None) -> Any:
        """The text of a key."""
        value = self.get(key, default)
        if value is not None and not isinstance(value, str):
            raise self.error(f"is {value!r}: write a text", key)
        return value

    def name_in(self, key: str, names: Mapping[str, Any], default: str | None = None) -> Any:
        """The value of a key that must be one of the names."""
        name = self.get(key, default)
        if name is not None:
            find(dict(names), name, f"{key} for {self.place}")
        return name


def _teacher(name: str, node: _Node) -> Teacher:
    node.check_keys(["title", "config", "opts", "seed", "weights"], required=["config"])
    seed = _check_seeds([node.get("seed", 1)], f"{node.where('seed')} of {node.path}")[0]
    weights = node.text("weights", None)
    opts = _opts(node.child("opts"))
    return Teacher(name, node.text("title", name), node.text("config", ""), opts, seed, weights)


def _method(
    name: str,
    node: _Node,
    common: dict[str, Any],
    teachers: dict[str, Teacher],
    methods: Mapping[str, Any],
    baseline: str,
    has_start: bool,
) -> Method:
    node.check_keys(["title", "config", "opts", "teacher", "baseline"], required=["config"])
    opts = _opts(node.child("opts"))
    teacher = node.name_in("teacher", teachers)
    for key in _OF_TEACHER:
        if teacher is not None and key in {**common, **opts}:
            raise node.error(f"sets {key}, as its teacher does: leave one of them out")
    if has_start and "MODEL.BACKBONE_WEIGHTS" in {**common, **opts}:
        raise node.error(
            "sets MODEL.BACKBONE_WEIGHTS, as the suite's start does: leave one of them out"
        )
    over = node.name_in("baseline", methods, None if name == baseline else baseline)
    if over == name:
        raise node.error("is the method itself: name another one", "baseline")
    title, config = node.text("title", name), node.text("config", "")
    return Method(name, title, config, {**common, **opts}, teacher, over)


def _opts(node: _Node) -> dict[str, Any]:
    for key, value in node.content.items():
        if key in _RESERVED:
            raise node.error(f"cannot be set here: use {_RESERVED[key]}", key)
        if not isinstance(key, str):
            raise node.error(f"holds the key {key!r}: write config keys such as SOLVER.MAX_ITER")
        if isinstance(value, Mapping):
            raise node.error(
                "holds further keys: write each with its dots, as SOLVER.MAX_ITER", key
            )
    return dict(node.content)


def _check_seeds(seeds: Any, where: str) -> tuple[int, ...]:
    good = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not good or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{where} is {seeds}: write different whole numbers from 0 on.")
    return tuple(seeds)
