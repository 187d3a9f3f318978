"""Suites: keys and values that are odd, names that stand for nothing, files that are no YAML."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cases import (
    EITHER,
    REFUSED,
    WORKS,
    Case,
    NotProven,
    Proof,
    changed,
    damages,
    mutations,
    without,
)
from world import World

from dpk_det.comparison.plan import plan
from dpk_det.comparison.suite import read_suite
from dpk_det.comparison.suite_configs import load_configs
from dpk_det.engine.train import parse_args, setup

KIND = "suites"
NAN = float("nan")

TABLE: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...] = (
    ("title", ([], 5, {}), ("A title", "naïve ☃")),
    ("seeds", ([], [1, 1], [-1], ["x"], [1.5], [None], [2**70], 5, "x", {}, [True]), ([7, 8],)),
    ("metric", ("bbox/APP", "AP", "", 5, [], "segm/AP", "bbox/"), ("bbox/AP75", None)),
    ("secondary", ("bbox/APP", "", 5, []), ("bbox/AP75",)),
    ("baseline", (None, "", "gone", 5, [], "big"), ("cwd",)),
    ("start", ("gone", 5, [], ""), ("big", None)),
    ("imports", (5, "x", {}, [5], [""], ["a b"], ["gone"], ["json"] * 2), (["json"], [], None)),
    ("equal_time", (5, "x", "all", [], {}), (True, False, "each", None)),
    ("step_seconds", ({}, 5), ()),
    (
        "tune",
        (
            *(5, [], "x", {}, {"seed": 11, "trials": 2}, {"seed": 1, "trials": 2, "keys": {}}),
            {"seed": 11, "trials": 0, "keys": {"cwd": {"DISTILL.CWD.WEIGHT": [1.0, 9]}}},
            {"seed": 11, "trials": 2, "keys": {"cdw": {"DISTILL.CWD.WEIGHT": [1.0, 9]}}},
            {"seed": 11, "trials": 2, "keys": {"cwd": {"DISTILL.CWD.WEIGHT": [9, NAN]}}},
            {"seed": 11, "trials": 2, "keys": {"cwd": {"DISTILL.CWD.WEIGHT": 5}}},
        ),
        ({"seed": 11, "trials": 2, "keys": {"cwd": {"DISTILL.CWD.WEIGHT": [1.0, 9]}}}, None),
    ),
    (
        "common",
        (5, [], "x", {"NOPE": 1}, {"SEED": 3}, {"OUTPUT_DIR": "x"}, {"IMPORTS": []}, {5: 6}),
        ({}, None),
    ),
    ("common.SOLVER.MAX_ITER", (None, "x", -1, [1], {}, 1.5), (5, "5")),
    ("common.SOLVER.BASE_LR", ("x", -1, NAN, None), (1, 0.5)),
    ("teachers", (5, [], "x", {"": {}}, {"a/b": {}}, {"big": None}, {"big": 5}), ()),
    ("teachers.big.config", (None, "", "gone.yaml", 5, [], "/"), ()),
    ("teachers.big.opts", (5, [], "x", {"NOPE": 1}, {"SOLVER.MAX_ITER": "x"}), ({}, None)),
    ("teachers.big.seed", ("x", -1, 1.5, 2**70, [], True), (5,)),
    ("teachers.big.weights", ("gone.pth", 5, [], "/"), (None,)),
    ("teachers.big.nope", (1,), ()),
    ("methods", (None, {}, [], 5, "x", {"": {}}, {"a b": {}}, {"plain": None}), ()),
    ("methods.cwd.config", (None, "", "gone.yaml", 5, [], "/", "README.md"), ()),
    ("methods.cwd.title", (5, [], "plain student"), ("A title", None)),
    ("methods.cwd.teacher", ("gone", "", 5, [], "plain"), ()),
    ("methods.cwd.control", ("gone", "", 5, [], "big"), ("plain", None)),
    ("methods.cwd.baseline", ("gone", "", 5, [], "cwd", "big"), ("plain", None)),
    ("methods.cwd.opts", (5, [], "x", {"NOPE": 1}, {"SEED": 1}, {"DISTILL": {}}), ()),
    (
        "methods.cwd.opts.DISTILL.METHODS",
        ([], ["gone"], ["cwd", "cwd"], [5], "x", 5, [None]),
        (["pkd"], "['pkd']"),
    ),
    ("methods.cwd.opts.DISTILL.CWD.WEIGHT", (-1, NAN, "x", [], None), (33, 0.5)),
    ("methods.cwd.opts.DISTILL.CWD.TEMPERATURE", (0, -1, 1e9), (2,)),
    ("methods.cwd.opts.DISTILL.TEACHER.CONFIG_FILE", ("x",), ()),
    ("methods.cwd.opts.MODEL.META_ARCHITECTURE", ("x", "GeneralizedRCNN"), ()),
    ("methods.cwd.opts.DATASETS.TEST", ("('gone',)", "()"), ()),
    ("methods.cwd.opts.solver.max_iter", (5,), ()),
    ("methods.cwd.nope", (1, None), ()),
    ("nope", (1, None), ()),
)


def suite_cases(world: World) -> list[Case]:
    """Cases of all sorts of suites."""
    return [*_of_table(world), *_of_structure(world), *_of_texts(world)]


def _base(world: World) -> dict[str, Any]:
    student = str(world.tiny.dpk)
    return {
        "title": "A suite",
        "description": "What it is for.",
        "seeds": [1, 2],
        "metric": "bbox/AP",
        "common": {"SOLVER.MAX_ITER": 2},
        "teachers": {"big": {"config": str(world.tiny.teacher), "opts": {"SOLVER.MAX_ITER": 4}}},
        "baseline": "plain",
        "methods": {
            "plain": {"title": "plain student", "config": str(world.tiny.plain)},
            "cwd": {
                "config": student,
                "teacher": "big",
                "opts": {"DISTILL.METHODS": ["cwd"], "DISTILL.CWD.WEIGHT": 5.0},
            },
            "dpk": {"config": student, "teacher": "big", "baseline": "cwd"},
        },
    }


def _load(text: str | bytes, folder: Path) -> Proof:
    """Read a suite and its configs; the proof is that every training of it begins to be set up."""
    file = folder / "suite.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf8", "surrogatepass"))
    todo = plan(read_suite(file), folder / "runs")
    configs = load_configs(todo, trains=True)
    return functools.partial(_check, todo, configs)


def _check(todo: Any, configs: Any) -> None:
    trained = todo.teachers.keys() | todo.methods.keys()  # and other teachers are evaluated
    if not todo.methods or configs.keys() != trained:
        raise NotProven(f"the rows are {list(todo.rows)}, the configs {list(configs)}")
    for runs in todo.rows.values():
        for run in runs.values():
            cfg = setup(parse_args(run.arguments))
            if cfg.OUTPUT_DIR != str(run.folder):
                raise NotProven(f"{run.name} goes to {cfg.OUTPUT_DIR}")


def _case(name: str, expect: str, content: Any) -> Case:
    text = content
    if not isinstance(content, str | bytes):
        text = yaml.safe_dump(content, sort_keys=False)
    return Case(KIND, name, expect, functools.partial(_load, text))


def _set(content: Any, path: str, value: Any) -> Any:
    for mark in ("common", "opts"):  # below them, dots belong to the key
        before, found, key = path.partition(f"{mark}.")
        if found:
            return changed(content, ((*before.split(".")[:-1], mark, key), value))
    return changed(content, (path, value))


def _of_table(world: World) -> Iterator[Case]:
    for path, bad, good in TABLE:
        for expect, values in ((REFUSED, bad), (WORKS, good)):
            for value in values:
                content = _set(_base(world), path, value)
                if path == "baseline" and value == "cwd":  # over which dpk is measured, too
                    content = without(content, "methods.dpk.baseline")
                yield _case(f"{path}: {value!r}", expect, content)


def _of_structure(world: World) -> Iterator[Case]:
    base = _base(world)
    for path in ("methods", "baseline", "methods.cwd.config", "teachers.big.config", "teachers"):
        yield _case(f"{path}: absent", REFUSED, without(base, path))
    for path in ("title", "description", "seeds", "metric", "common", "methods.dpk.baseline"):
        yield _case(f"{path}: absent", WORKS, without(base, path))
    circle = changed(base, ("methods.cwd.baseline", "dpk"), ("methods.plain.baseline", "dpk"))
    yield _case("mutual baselines", REFUSED, circle)
    named = changed(base, ("methods.big", base["methods"]["plain"] | {"title": "x"}))
    yield _case("a method named as a teacher", REFUSED, named)
    seed = changed(base, ("teachers.cwd-seed1", base["teachers"]["big"] | {"title": "x"}))
    yield _case("a teacher named as a run", REFUSED, seed)
    text = (world.images / "0.png", "README.md")
    for path in text:
        content = changed(base, ("teachers.big.weights", str(path)))
        yield _case(f"weights of {Path(path).name}", REFUSED, content)
    there = changed(base, ("teachers.big.weights", str(world.tiny.weights)))
    yield _case("weights that are there", WORKS, there)
    for number, (name, content) in enumerate(mutations(base, 50, seed=5)):
        yield _case(f"mutation {number}: {name}", EITHER, content)


def _of_texts(world: World) -> Iterator[Case]:
    text = yaml.safe_dump(_base(world), sort_keys=False)
    yield _case("the valid suite", WORKS, text)
    for name, odd in {
        "empty": "",
        "a list": "- a\n",
        "a text": "hello\n",
        "tabs": "title:\n\tx\n",
        "a method twice": text + "  dpk: {config: x}\n",
        "a key twice": text + "title: again\n",
        "a tag that runs code": text + 'nope: !!python/object/apply:os.system ["true"]\n',
        "an alias of itself": text + "nope: &a [*a]\n",
        "two documents": text + "---\n" + text,
        "NUL": "\0" * 10,
        "null for a key": text + "null: 5\n",
        "yes for a name": text + "  yes: {config: x}\n",
    }.items():
        yield _case(f"text: {name}", REFUSED, odd)
    yield _case("bytes: an image", REFUSED, (world.images / "0.png").read_bytes())
    for number, (name, odd) in enumerate(damages(text.encode(), 20, seed=6)):
        yield _case(f"damage {number}: {name}", EITHER, odd)
