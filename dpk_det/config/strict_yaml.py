"""Reads YAML files strictly: no key stands twice, and no tag creates an object."""

import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from dpk_det.errors import UserError

_MOST_VALUES = 20_000  # aliases of aliases can expand a small file to millions of values


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if isinstance(node, yaml.MappingNode):  # the base class reports other nodes
            seen = set()
            for key_node, _ in node.value:  # before merging, because a key may override one of "<<"
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, Hashable):
                    break  # the base class reports it
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def _refuse(loader: _Loader, node: yaml.Node) -> None:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    raise yaml.constructor.ConstructorError(
        None, None, f"the tag {tag} is not of plain YAML, and could run code", node.start_mark
    )


_Loader.add_constructor(None, _refuse)


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file that holds only mappings, lists, strings, numbers, booleans and nulls.

    Args:
        path: the file.
        what: what errors call the file ("suite").

    Raises:
        UserError: if the file cannot be read, is no YAML, has a key twice or a tag, holds a date,
            NaN or infinity, is nested too deeply, refers to itself, or has more than 20,000 values
            after its aliases are expanded.
    """
    try:
        with path.open("rb") as file:
            content = yaml.load(file, _Loader)
    except OSError as e:
        raise UserError(f"The {what} {path} cannot be read ({e.strerror or e}): check it.") from e
    except (yaml.YAMLError, ValueError, OverflowError) as e:  # an impossible date, for example
        reason = " ".join(str(e).replace("<file>", str(path)).split())
        raise UserError(f"The {what} {path} is no YAML ({reason}): correct it.") from e
    except RecursionError as e:
        raise UserError(
            f"The {what} {path} is nested too deeply: write it with fewer brackets."
        ) from e
    _check_values(content, f"The {what} {path}")
    return content


def _check_values(content: Any, where: str) -> None:
    left, count = [content], 0
    while left:
        value = left.pop()
        count += 1
        if count > _MOST_VALUES:
            raise UserError(
                f"{where} refers to itself, or its aliases stand for more than {_MOST_VALUES:,} "
                "values: write out what is meant."
            )
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            left += value
        elif isinstance(value, float) and not abs(value) < float("inf"):
            raise UserError(f"{where} holds the number {value}: write a finite one.")
        elif not (value is None or isinstance(value, str | int | float)):
            raise UserError(
                f"{where} holds {reprlib.repr(value)}, which YAML takes for a "
                f"{type(value).__name__}: write it in quotes."
            )
