"""Every key that dpk_det adds to Detectron2's config, with its default and its meaning.

The keys of methods, ``DISTILL.<NAME>``, are derived from the methods' constructors.
"""

import copy
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from dpk_det.config.key_table import KEYS
from dpk_det.distill import DISTILLERS
from dpk_det.distill.arguments import REQUIRED, list_arguments
from dpk_det.schema import convert


class Key(NamedTuple):
    """A config key."""

    name: str
    default: Any
    meaning: str


def all_keys() -> Iterator[Key]:
    """Yield every key that dpk_det adds, including those of the registered methods."""
    for name, (default, meaning) in KEYS.items():
        yield Key(name, default, meaning)
    for method in sorted(DISTILLERS):
        yield from method_keys(method)


def method_keys(method: str) -> Iterator[Key]:
    """Yield the keys below ``DISTILL`` of one registered method.

    They are its constructor's keyword arguments in capitals and, if it takes levels, ``LEVELS``. An
    argument has no key if a config cannot hold its default, such as a module. A required argument
    has the default None.
    """
    constructor, node = DISTILLERS[method], f"DISTILL.{method.upper()}"
    if getattr(constructor, "takes_levels", True):
        yield Key(f"{node}.LEVELS", [], "Levels of this method; []: those of DISTILL.LEVELS.")
    for name, argument in list_arguments(constructor)[0].items():
        default = None if argument.default is REQUIRED else argument.default
        default = list(default) if isinstance(default, tuple) else default
        if type(default) is int:
            default = convert(default, argument.kind, name)  # 100 can be the default of a float
        if default is None or isinstance(default, list | str | int | float):
            yield Key(f"{node}.{name.upper()}", default, argument.meaning)


def add_dpk_config(cfg: CfgNode) -> None:
    """Add the keys of dpk_det and of all methods registered so far to a config, in place."""
    for name, default, _ in all_keys():
        *path, last = name.split(".")
        node = cfg
        for part in path:
            node = node.setdefault(part, CfgNode())
        is_node = isinstance(default, dict)
        node[last] = CfgNode(new_allowed=True) if is_node else copy.deepcopy(default)


_PAGE = """# Config keys

Every key that dpk_det adds to Detectron2's, with its default. This page is the output of
`python tools/list_keys.py`, which with `--imports my_project` lists the keys of your methods too.
Set keys in a file (`DISTILL: {DPK: {WEIGHT: 6.0}}`) or on the command line (`DISTILL.DPK.WEIGHT
6.0`).
"""


def describe_keys() -> str:
    """Return all keys as a Markdown page: for each node a table with default and meaning."""
    tables: dict[str, list[str]] = {}
    for name, default, meaning in all_keys():
        node, _, key = name.rpartition(".")
        value = '""' if default == "" else str(default)
        meaning = meaning.replace("|", "\\|")
        tables.setdefault(node, []).append(f"| `{key}` | `{value}` | {meaning} |")
    parts = [_PAGE.rstrip()]
    for node, rows in tables.items():
        parts.append(f"## {node or 'Top level'}")
        method = DISTILLERS.get(node.removeprefix("DISTILL.").lower())
        if method:
            parts.append((inspect.getdoc(method) or "").partition("\n\n")[0])
        parts.append("\n".join(["| key | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(filter(None, parts)) + "\n"
