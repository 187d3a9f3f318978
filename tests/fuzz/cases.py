"""What a case is, and the tools that the lists of cases share."""

import contextlib
import copy
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpk_det.errors import UserError

REFUSED, WORKS, EITHER = "refused", "works", "either"
"""What should come of a case. EITHER: refused, or else what was accepted has to work."""

ODD: tuple[Any, ...] = (
    None,
    -1,
    0,
    float("nan"),
    float("inf"),
    1e308,
    -0.5,
    "",
    "x",
    "naïve ☃",
    "a\0b",
    [],
    [None],
    [[]],
    {},
    {"x": 1},
    True,
    2**70,
    -(2**70),
    b"bytes",
)
"""Values that hardly any key can take."""

Proof = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One odd input.

    Attributes:
        kind: a row of the table. name: unique within it. expect: one of the verdicts above.
        accept: is given an empty folder; raises UserError where the input is refused, and else
            returns what proves that the input was rightly accepted, by raising nothing.
    """

    kind: str
    name: str
    expect: str
    accept: Callable[[Path], Proof]


class NotProven(Exception):
    """What was accepted does not do what it should."""


def nothing() -> None:
    """A proof where there is nothing to prove."""


def command(run: Callable[[list[str]], Any], *argv: Any) -> None:
    """Run a command in this process.

    Raises:
        UserError: where it ended with status 2, with the last line that it printed.
        SystemExit: where it ended with another one, but 0.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            run([str(arg) for arg in argv])
    except SystemExit as e:
        if e.code in (None, 0):
            return
        lines = errors.getvalue().strip().splitlines() or [""]
        if e.code != 2 or "error: " not in lines[-1]:
            raise
        raise UserError(lines[-1].partition("error: ")[2]) from e


Place = str | tuple[Any, ...]
"""Where something stands in nested dicts and lists: ``"images.0.id"``, or as a tuple of keys."""


def changed(content: Any, *steps: tuple[Place, Any]) -> Any:
    """A copy of nested dicts and lists, in which values were set."""
    content = copy.deepcopy(content)
    for path, value in steps:
        node, last = _reach(content, path, make=True)
        node[last] = value
    return content


def without(content: Any, path: Place) -> Any:
    """A copy of nested dicts and lists, without an entry."""
    content = copy.deepcopy(content)
    node, last = _reach(content, path)
    del node[last]
    return content


def doubled(content: Any, path: Place) -> Any:
    """A copy, in which an entry of a list stands a second time at the list's end."""
    content = copy.deepcopy(content)
    node, last = _reach(content, path)
    node.append(copy.deepcopy(node[last]))
    return content


def _reach(content: Any, path: Place, make: bool = False) -> tuple[Any, Any]:
    node, way = content, path.split(".") if isinstance(path, str) else path
    for number, key in enumerate(way, 1):
        if isinstance(node, list):
            key = int(key)
        if number == len(way):
            return node, key
        if make and isinstance(node, dict) and not isinstance(node.get(key), dict | list):
            node[key] = {}
        node = node[key]
    raise ValueError("a path needs a key")


def places(content: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all entries of nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*way, key)
        if isinstance(value, dict | list):
            yield from places(value, (*way, key))


def mutations(content: Any, count: int, seed: int) -> Iterator[tuple[str, Any]]:
    """Names and copies of nested dicts and lists, each with one or two changes by chance."""
    rng = random.Random(seed)
    for _ in range(count):
        names, mutated = [], content
        for _ in range(rng.choice((1, 1, 2))):
            path = rng.choice(list(places(mutated)))
            what = rng.choice(("odd", "odd", "odd", "delete", "double"))
            if what == "delete":
                mutated = without(mutated, path)
            elif what == "double" and isinstance(path[-1], int):
                mutated = doubled(mutated, path)
            else:
                value = rng.choice(ODD)
                mutated, what = changed(mutated, (path, value)), f"{value!r}"
            names.append(f"{'.'.join(map(str, path))}: {what}")
        yield "; ".join(names), mutated


def damages(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and copies of a file's bytes, cut off, turned over or filled by chance."""
    rng = random.Random(seed)
    for number in range(count):
        place = rng.randrange(len(data))
        match number % 4:
            case 0:
                yield f"cut off at byte {place}", data[:place]
            case 1:
                bit = bytes([data[place] ^ (1 << rng.randrange(8))])
                yield f"a bit of byte {place} turned", data[:place] + bit + data[place + 1 :]
            case 2:
                zeros = bytes(min(20, len(data) - place))
                yield f"zeros from byte {place}", data[:place] + zeros + data[place + len(zeros) :]
            case 3:
                noise = rng.randbytes(20)
                yield f"noise put in at byte {place}", data[:place] + noise + data[place:]
