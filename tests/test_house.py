"""The house keeps its shape: arrows point down, no circle, short files and functions.

docs/architecture.md says what each room is for.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dpk_det

PACKAGE = Path(dpk_det.__file__).parent
# lowest first; those in one line do not import each other
FLOORS = [
    {"errors", "random_state"},
    {"schema", "news", "files"},
    {"distill"},
    {"architectures", "checkpoint"},
    {"config"},
    {"pairing"},
    {"data", "modeling"},
    {"engine"},
    {"comparison", "deploy", "project"},
    {"cli"},
    {""},  # dpk_det/__init__.py, the public face
]
# rooms whose files are usable where Detectron2 is absent -> all that they may import besides
ALONE = {"distill": {"torch", "msgspec"}, "schema": {"msgspec"}, "errors": set()}


def modules(root=PACKAGE):
    """Dotted name -> syntax tree, of every file."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = ("dpk_det", *path.relative_to(root).with_suffix("").parts)
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return found


def imports(tree, known):
    """The modules that a file imports, wherever in it: files of ``known`` by their own names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                yield deeper if deeper in known else node.module


def room(name):
    """``distill`` of ``dpk_det.distill.dpk.cka``."""
    return [*name.split("."), ""][1]


def floor(name):
    found = [i for i, rooms in enumerate(FLOORS) if room(name) in rooms]
    assert found, f"{name} is on no floor: put it into a room, or its room into FLOORS"
    return found[0]


def upward(trees):
    """Pairs of a module and one that it imports from a floor above, or beside it on the same."""
    return [
        (name, other)
        for name, tree in trees.items()
        for other in imports(tree, trees)
        if other.split(".")[0] == "dpk_det"
        and room(other) != room(name)
        and floor(other) >= floor(name)
    ]


def test_arrows_point_down():
    assert upward(modules()) == []


def test_files_do_not_import_each_other_in_a_circle():
    trees = modules()
    graph = {name: {x for x in imports(tree, trees) if x in trees} for name, tree in trees.items()}
    for name in graph:  # a package names its files, which may import others of these
        graph[name] = {x for x in graph[name] if not name.startswith(f"{x}.")} - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(" -> ".join(e.args[1]))


@pytest.mark.parametrize("name", ALONE)
def test_what_needs_no_detectron2_imports_none(name):
    trees = modules()
    rooms = {"errors", "schema", name}
    for module, tree in trees.items():
        for other in imports(tree, trees) if room(module) == name else ():
            top = other.split(".")[0]
            allowed = room(other) in rooms if top == "dpk_det" else top in ALONE[name]
            assert allowed or top in sys.stdlib_module_names, f"{module} imports {other}"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("dpk_det.distill.late", "from dpk_det.engine.trainer import DistillTrainer"),
        ("dpk_det.errors", "import dpk_det.config"),
        ("dpk_det.engine.lock", "from dpk_det.comparison import runs"),
        ("dpk_det.deploy.predict", "def f():\n    from dpk_det.comparison.plan import plan"),
    ],
)
def test_an_arrow_that_points_up_is_seen(name, line):
    trees = modules()
    trees[name] = ast.parse(f"{ast.unparse(trees[name])}\n{line}")
    assert [x for x, _ in upward(trees)] == [name]


def test_nobody_takes_what_another_file_keeps_for_itself():
    taken = [
        f"{name}: {node.module}.{alias.name}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "dpk_det"
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert taken == []


def test_a_file_has_300_lines_and_a_function_60_at_most():
    long = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text, where = path.read_text(), path.relative_to(PACKAGE)
        if len(text.splitlines()) > 300:
            long.append(str(where))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if node.end_lineno - node.lineno >= 60:
                    long.append(f"{where}: {node.name}")
    assert long == []
