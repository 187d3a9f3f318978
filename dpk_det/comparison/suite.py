"""Suites: YAML files that say which methods are compared."""

import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from dpk_det.comparison.search_space import Tune, read_tune
from dpk_det.config.strict_yaml import read_yaml
from dpk_det.errors import UserError, find

OF_TEACHER = ("DISTILL.TEACHER.CONFIG_FILE", "DISTILL.TEACHER.WEIGHTS", "DISTILL.TEACHER.OPTS")
"""Config keys that a method's ``teacher`` sets."""
START = "MODEL.BACKBONE_WEIGHTS"
"""The config key that a suite's ``start`` sets."""

# config keys that the comparison sets itself -> what to write in the suite in place of them
_RESERVED = {"SEED": "seeds", "OUTPUT_DIR": "--runs on the command line"}
_MOST = 2**31 - 1  # numpy's generators take seeds of 32 bits, and each rank adds its number
_WANTED = {
    "seed": f"a whole number from 0 to {_MOST}",
    "seeds": f"different whole numbers from 0 to {_MOST}",
    "description": "a text",
    "weights": "a text of one line, up to 500 letters long",
}
_TEXT = "a text of one line, of 1 to 500 letters"

Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]{1,500}$")]
Seed = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
T = TypeVar("T", bound=msgspec.Struct)


class Teacher(msgspec.Struct, frozen=True, kw_only=True):
    """A teacher of a suite.

    Attributes:
        name: also its folder. title: of its row. config: its file. opts: overrides of that.
        seed: of its training. weights: None: it is trained; else they are there already, a path or
            URL, or "" for those of the model zoo.
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
        name: begins its folders. title: of its row. config: its file.
        opts: overrides of that, those that all students share included.
        teacher: name of the teacher that it learns from; None for one of its config's own, or none.
        baseline: name of the method that its gain is measured against; None for the suite's
            baseline itself, and for what that one is measured against in its turn.
    """

    name: Text
    title: Text
    config: Text
    opts: dict[str, Any] = {}
    teacher: Text | None = None
    baseline: Text | None = None


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """What a suite's file says.

    Attributes:
        path: of the file. title, description: of the report. seeds: of the students.
        metric: what is compared, such as "bbox/AP". secondary: a second one to show, or None.
        baseline: name of a method: gains, time and memory are relative to it.
        start: name of the teacher, itself perhaps a plain student, whose backbone all students
            start with (MODEL.BACKBONE_WEIGHTS), as detectors do with ImageNet's; None for what
            their configs say.
        teachers, methods: by name, in the order of the table.
        tune: what ``tools/tune.py`` has to find out; a comparison ignores it.
    """

    path: Path
    title: Text
    description: str = ""
    seeds: Annotated[tuple[Seed, ...], msgspec.Meta(min_length=1)] = (1,)
    metric: Text = "bbox/AP"
    secondary: Text | None = None
    baseline: Text
    start: Text | None = None
    teachers: dict[str, Teacher]
    methods: dict[str, Method]
    tune: Tune | None = None


def read_suite(path: Path) -> Suite:
    """Read a suite and check all in it that can be checked without its configs.

    Raises:
        UserError: when there is no such file, it is no YAML, or something in it has the wrong name
            or type, naming file and key.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"There is no suite {path}: give a path to one, such as configs/compare/demo.yaml."
        )
    content = read_yaml(path, "suite")
    known = "title description seeds common start teachers baseline methods metric secondary tune"
    content = _lines(content, str(path), known.split(), required=["methods", "baseline"])
    common = _opts(content.pop("common", {}), f"common of {path}")
    teachers = {
        name: _entry(Teacher, name, entry, f"teachers.{name} of {path}", {})
        for name, entry in _named(content.pop("teachers", {}), f"teachers of {path}")
    }
    methods = {
        name: _entry(Method, name, entry, f"methods.{name} of {path}", common)
        for name, entry in _named(content.pop("methods"), f"methods of {path}")
    }
    if not methods:
        raise UserError(f"methods of {path} is empty: name what is to be compared.")
    metric = content.get("metric", "bbox/AP")
    if isinstance(metric, str) and metric.endswith("/AP"):
        content.setdefault("secondary", f"{metric}50")  # of other metrics nothing is known
    tune = content.pop("tune", None)
    fields = {"title": path.stem, **content, "path": path, "teachers": {}, "methods": {}}
    suite = _convert(Suite, fields, str(path), named=False)
    suite = msgspec.structs.replace(suite, teachers=teachers, methods=methods)
    check_seeds(suite.seeds, f"seeds of {path}")
    suite = msgspec.structs.replace(suite, tune=read_tune(tune, path, methods, suite.seeds))
    check_folders(suite, suite.seeds)
    _check_names(suite)
    _check_baselines(suite)
    _check_keys(suite)
    return _with_default_baselines(suite)


def check_seeds(seeds: Sequence[int], where: str) -> tuple[int, ...]:
    """Seeds as a tuple.

    Raises:
        UserError: when there is none, one stands twice, or torch or numpy would not take it.
    """
    if not seeds or len({*seeds}) < len(seeds) or not all(0 <= seed <= _MOST for seed in seeds):
        raise UserError(f"{where} is {list(seeds)}: write {_WANTED['seeds']}.")
    return tuple(seeds)


def check_folders(suite: Suite, seeds: Iterable[int]) -> None:
    """Check that no two trainings would have one folder.

    Raises:
        UserError: naming the name that stands for two things.
    """
    folders = {f"{name}-seed{seed}" for name in suite.methods for seed in seeds}
    if both := sorted({*suite.teachers} & ({*suite.methods} | folders)):
        raise UserError(
            f"{both[0]} of {suite.path} names both a teacher and a method: rename one of them."
        )


# ------------------------------------------------------------------ checks of the whole


def _check_names(suite: Suite) -> None:
    find(dict(suite.methods), suite.baseline, f"baseline for {suite.path}")
    if suite.start is not None:
        find(dict(suite.teachers), suite.start, f"start for {suite.path}")
    for name, method in suite.methods.items():
        where = f"methods.{name} of {suite.path}"
        if method.teacher is not None:
            find(dict(suite.teachers), method.teacher, f"teacher for {where}")
        if method.baseline is not None:
            find(dict(suite.methods), method.baseline, f"baseline for {where}")
    titles: set[str] = set()
    for entry in (*suite.teachers.values(), *suite.methods.values()):
        if entry.title in titles:
            raise UserError(
                f"The title '{entry.title}' stands twice in {suite.path}: change one of them."
            )
        titles.add(entry.title)


def _check_baselines(suite: Suite) -> None:
    for name in suite.methods:
        way = [name]
        while (over := suite.methods[way[-1]].baseline) is not None:
            if over == way[-1]:
                raise UserError(
                    f"methods.{over}.baseline of {suite.path} is the method itself: name another "
                    "one."
                )
            if over in way:
                circle = " over ".join([*way[way.index(over) :], over])
                raise UserError(
                    f"The baselines in {suite.path} go round in a circle ({circle}): give one of "
                    "these methods another baseline."
                )
            way.append(over)


def _with_default_baselines(suite: Suite) -> Suite:
    above, name = set(), suite.baseline
    while name is not None:  # by default nothing is measured in a circle
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
        for key in OF_TEACHER:
            if method.teacher is not None and key in method.opts:
                raise UserError(
                    f"methods.{name} of {suite.path} sets {key}, as its teacher does: leave one of "
                    "them out."
                )
        if suite.start is not None and START in method.opts:
            raise UserError(
                f"methods.{name} of {suite.path} sets {START}, as the suite's start does: leave "
                "one of them out."
            )


# ------------------------------------------------------------------ reading parts


def _named(content: Any, where: str) -> Iterable[tuple[str, Any]]:
    for name, entry in _lines(content, where).items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
            raise UserError(
                f"{where} holds the name {reprlib.repr(name)}: names become folders, so write up "
                "to 100 of A to Z, a to z, digits, - and _ (in quotes where YAML takes them for "
                "something else)."
            )
        yield name, entry


def _entry(kind: type[T], name: str, content: Any, where: str, common: Mapping[str, Any]) -> T:
    known = [field for field in kind.__struct_fields__ if field != "name"]
    content = _lines(content, where, known, required=["config"])
    opts = {**common, **_opts(content.get("opts", {}), f"opts of {where}")}
    return _convert(kind, {"title": name, **content, "name": name, "opts": opts}, where)


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


def _opts(content: Any, where: str) -> dict[str, Any]:
    for key, value in _lines(content, where).items():
        if not isinstance(key, str) or not key:
            raise UserError(f"{where} holds the key {key!r}: write config keys, SOLVER.MAX_ITER.")
        if key in _RESERVED:
            raise UserError(f"{key} cannot be set in {where}: use {_RESERVED[key]}.")
        if isinstance(value, dict):
            raise UserError(
                f"{key} in {where} holds further keys: write each with its dots, as "
                "SOLVER.MAX_ITER."
            )
        if not _is_value(value):
            raise UserError(
                f"{key} in {where} is {reprlib.repr(value)}: write a text, a number, True, False "
                'or a list of them ("None" in quotes).'
            )
    return content


def _is_value(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_value(x) for x in value)
    return isinstance(value, str | int | float)
