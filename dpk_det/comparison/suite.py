"""Suites: YAML files that say which methods are compared."""

import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from dpk_det.comparison.opts import check_opts
from dpk_det.comparison.tuning.space import Tune, read_tune
from dpk_det.config.imports import import_modules
from dpk_det.config.shipped import find_config
from dpk_det.config.strict_yaml import read_yaml
from dpk_det.errors import UserError, find

OF_TEACHER = ("DISTILL.TEACHER.CONFIG_FILE", "DISTILL.TEACHER.WEIGHTS", "DISTILL.TEACHER.OPTS")
"""Config keys that a method's ``teacher`` sets."""
START = "MODEL.BACKBONE_WEIGHTS"
"""The config key that a suite's ``start`` sets."""

_MOST = 2**31 - 1  # numpy's generators take seeds of 32 bits, and each rank adds its number
_WANTED = {
    "seed": f"a whole number from 0 to {_MOST}",
    "seeds": f"different whole numbers from 0 to {_MOST}",
    "description": "a text",
    "equal_time": "True, False or each",
    "weights": "a text of one line, up to 500 letters long",
}
_TEXT = "a text of one line, of 1 to 500 letters"

Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]{1,500}$")]
Seed = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
T = TypeVar("T", bound=msgspec.Struct)


class Teacher(msgspec.Struct, frozen=True, kw_only=True):
    """A teacher of a suite.

    Attributes:
        name: name, also of its folder.
        title: title of its row.
        config: config file.
        opts: overrides of the config.
        seed: seed of its training.
        weights: path, URL, or "" for the model zoo's weights; None: the teacher is trained.
    """

    name: Text
    title: Text
    config: Text
    opts: dict[str, Any] = {}
    seed: Seed = 1
    weights: Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]{0,500}$")] | None = None


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """A student of a suite.

    Attributes:
        name: name, with which its folders begin.
        title: title of its row.
        config: config file.
        opts: overrides of the config, with the suite's ``common``.
        teacher: name of the teacher that it learns from; None: the config's own teacher, or none.
        baseline: name of the method that its gain is measured against; None for the suite's
            baseline, or for the last method in that baseline's own chain of baselines.
        control: name of a student that trains as long without a teacher; None: see ``equal_time``.
    """

    name: Text
    title: Text
    config: Text
    opts: dict[str, Any] = {}
    teacher: Text | None = None
    baseline: Text | None = None
    control: Text | None = None


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """What a suite's file says.

    Attributes:
        path: path of the file.
        title: title of the report.
        description: description in the report.
        seeds: seeds of the students.
        metric: metric that is compared, such as "bbox/AP".
        secondary: second metric to show, or None.
        baseline: name of a method; gains, time and memory are relative to it.
        start: name of the teacher (perhaps a plain student) whose backbone all students start with,
            by MODEL.BACKBONE_WEIGHTS; None: as their configs say.
        imports: modules that all trainings import (IMPORTS).
        equal_time: whether each baseline also trains for the time of the slowest method, or of
            "each" method; see :mod:`.equal_time`.
        step_seconds: method to seconds of a step, measured side by side; not from the file.
        teachers: by name, in the order of the table; their opts include the imports.
        methods: like ``teachers``.
        tune: settings for ``tools/tune.py``; a comparison ignores them.
    """

    path: Path
    title: Text
    description: str = ""
    seeds: Annotated[tuple[Seed, ...], msgspec.Meta(min_length=1)] = (1,)
    metric: Text = "bbox/AP"
    secondary: Text | None = None
    baseline: Text
    start: Text | None = None
    imports: tuple[str, ...] = ()
    equal_time: bool | Literal["each"] = False
    step_seconds: dict[str, float] = {}
    teachers: dict[str, Teacher]
    methods: dict[str, Method]
    tune: Tune | None = None


_OURS = ("path", "step_seconds")
_KEYS = [*(field for field in Suite.__struct_fields__ if field not in _OURS), "common"]


def read_suite(path: Path) -> Suite:
    """Read a suite, and check everything that can be checked without its configs.

    Raises:
        UserError: when the file is absent, is not YAML or has a wrong name or type, naming the key.
    """
    path = Path(find_config(str(path)))
    if not os.path.isfile(path):
        raise UserError(
            f"There is no suite {path}: give a path to one, such as configs/compare/demo.yaml."
        )
    content = read_yaml(path, "suite")
    if isinstance(content, dict) and not content.keys().isdisjoint(("_BASE_", "MODEL", "SOLVER")):
        raise UserError(f"{path} is the config of one training, no suite: dpk-det train takes it.")
    content = _lines(content, str(path), _KEYS, required=["methods", "baseline"])
    tune, imports = content.pop("tune", None), content.get("imports", [])
    import_modules(imports, f"imports of {path}")
    given = {"IMPORTS": imports} if imports else {}
    common = {
        **given,
        **check_opts(_lines(content.pop("common", {}), f"common of {path}"), f"common of {path}"),
    }
    teachers = _entries(Teacher, content.pop("teachers", {}), f"teachers of {path}", given)
    methods = _entries(Method, content.pop("methods"), f"methods of {path}", common)
    if not methods:
        raise UserError(f"methods of {path} is empty: name what is to be compared.")
    metric = content.get("metric", "bbox/AP")
    if isinstance(metric, str) and metric.endswith("/AP"):
        content.setdefault("secondary", f"{metric}50")  # other metrics have no default
    fields = {"title": path.stem, **content, "path": path, "teachers": {}, "methods": {}}
    suite = _convert(Suite, fields, str(path), named=False)
    suite = msgspec.structs.replace(suite, teachers=teachers, methods=methods)
    check_seeds(suite.seeds, f"seeds of {path}")
    suite = msgspec.structs.replace(suite, tune=read_tune(tune, path, methods, suite.seeds))
    check_folders(suite, suite.seeds)
    _check_names(suite)
    _check_keys(suite)
    return _with_default_baselines(suite)


def suite_name(path: Path) -> str:
    """Return the name of a suite's outputs: its file's name, or the folder's for ``suite.yaml``."""
    return path.resolve().parent.name if path.stem == "suite" else path.stem


def check_seeds(seeds: Sequence[int], where: str) -> tuple[int, ...]:
    """Check seeds, and return them as a tuple.

    Raises:
        UserError: when there is no seed, a seed appears twice, or torch or numpy would refuse it.
    """
    if not seeds or len({*seeds}) < len(seeds) or not all(0 <= seed <= _MOST for seed in seeds):
        raise UserError(f"{where} is {list(seeds)}: write {_WANTED['seeds']}.")
    return tuple(seeds)


def check_folders(suite: Suite, seeds: Iterable[int]) -> None:
    """Check that no two trainings would share a folder.

    Raises:
        UserError: when they would, naming the shared name.
    """
    folders = {f"{name}-seed{seed}" for name in suite.methods for seed in seeds}
    if both := sorted({*suite.teachers} & ({*suite.methods} | folders)):
        raise UserError(
            f"{both[0]} of {suite.path} names both a teacher and a method: rename one of them."
        )


# ------------------------------------------------------------------ checks of the whole


def _check_names(suite: Suite) -> None:
    def check(table: Mapping[str, Any], name: str | None, what: str) -> None:
        if name is not None:
            find(table, name, what)

    check(suite.methods, suite.baseline, f"baseline for {suite.path}")
    check(suite.teachers, suite.start, f"start for {suite.path}")
    for name, method in suite.methods.items():
        where = f"methods.{name} of {suite.path}"
        check(suite.teachers, method.teacher, f"teacher for {where}")
        check(suite.methods, method.baseline, f"baseline for {where}")
        check(suite.methods, method.control, f"control for {where}")
    over = {n: [m.baseline] for n, m in suite.methods.items() if m.baseline is not None}
    try:
        TopologicalSorter(over).prepare()
    except CycleError as e:
        circle = " over ".join(reversed(e.args[1]))
        raise UserError(
            f"The baselines in {suite.path} go round in a circle ({circle}): give one of these "
            "methods another baseline."
        ) from e
    titles = [entry.title for entry in (*suite.teachers.values(), *suite.methods.values())]
    if twice := next((title for title in titles if titles.count(title) > 1), None):
        raise UserError(f"The title '{twice}' stands twice in {suite.path}: change one of them.")


def _with_default_baselines(suite: Suite) -> Suite:
    above, name = set(), suite.baseline
    while name is not None:  # a default baseline must not close a circle
        above.add(name)
        name = suite.methods[name].baseline
    methods = {
        name: method
        if method.baseline is not None or name in above
        else msgspec.structs.replace(method, baseline=suite.baseline)
        for name, method in suite.methods.items()
    }
    return msgspec.structs.replace(suite, methods=methods)


def _check_keys(suite: Suite) -> None:
    for name, method in suite.methods.items():
        taken = {} if suite.start is None else {START: "the suite's start"}
        if method.teacher is not None:
            taken |= dict.fromkeys(OF_TEACHER, "its teacher")
        for key, by in taken.items():
            if key in method.opts:
                raise UserError(
                    f"methods.{name} of {suite.path} sets {key}, as {by} does: leave one of them "
                    "out."
                )


# ------------------------------------------------------------------ reading parts


def _entries(kind: type[T], content: Any, where: str, common: Mapping[str, Any]) -> dict[str, T]:
    known = [field for field in kind.__struct_fields__ if field != "name"]
    entries = {}
    for name, entry in _lines(content, where).items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
            raise UserError(
                f"{where} holds the name {reprlib.repr(name)}: names become folders, so write up "
                "to 100 of A to Z, a to z, digits, - and _ (in quotes where YAML takes them for "
                "something else)."
            )
        place = where.replace(" of ", f".{name} of ", 1)
        entry = _lines(entry, place, known, required=["config"])
        opts = {
            **common,
            **check_opts(_lines(entry.get("opts", {}), f"opts of {place}"), f"opts of {place}"),
        }
        entries[name] = _convert(kind, {"title": name, **entry, "name": name, "opts": opts}, place)
    return entries


def _lines(
    content: Any, where: str, known: Iterable[str] | None = None, required: Iterable[str] = ()
) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{where} must hold KEY: VALUE lines, and holds {reprlib.repr(content)}.")
    if known is not None:
        for key in content:
            find(dict.fromkeys(known), key, f"key in {where}")
    for key in required:
        if content.get(key) is None:
            raise UserError(f"{where} lacks the key {key}: add it.")
    if known is None:
        return content
    return {key: value for key, value in content.items() if value is not None}


def _convert(kind: type[T], content: Mapping[str, Any], where: str, named: bool = True) -> T:
    content = dict(content)
    if isinstance(content["title"], str):
        content["title"] = " ".join(content["title"].split())
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as e:
        key = re.search(r"at `\$\.(\w+)", str(e))[1]
        place = where.replace(" of ", f".{key} of ", 1) if named else f"{key} of {where}"
        raise UserError(
            f"{place} is {reprlib.repr(content[key])}: write {_WANTED.get(key, _TEXT)}."
        ) from e
