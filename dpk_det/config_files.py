"""Config files: YAML with Detectron2's ``_BASE_`` chains, of which none runs code.

Detectron2 itself obeys tags such as ``!!python/object/apply:os.system`` in whatever file it reads.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import detectron2
import yaml
from detectron2.config import CfgNode

from dpk_det.errors import UserError

# Installed with Detectron2's code, and trusted as that is: its RetinaNets compute their anchors.
_MODEL_ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
_KEYS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def read_config_file(path: str) -> dict[str, Any]:
    """What a config file says, on top of what its ``_BASE_`` files say.

    Raises:
        UserError: when one of the files is absent, no YAML, holds a tag that runs code or a key
            twice, or is a base of itself.
    """
    try:
        content = _Reader.load_yaml_with_base(os.path.expanduser(path))
    except UserError:
        raise
    except RecursionError as e:
        raise UserError(f"The config {path} is a _BASE_ of itself: take it out there.") from e
    except AssertionError as e:  # "Cannot inherit key 'MODEL' from base!"
        raise UserError(
            f"The config {path} and its _BASE_ do not fit together ({' '.join(str(e).split())}): "
            "write either a value or keys below that key, in both."
        ) from e
    except (ValueError, TypeError, AttributeError, OSError, yaml.YAMLError) as e:
        raise UserError(
            f"The config {path} cannot be read ({' '.join(str(e).split())}): correct it."
        ) from e
    return content


class _Reader(CfgNode):
    """Reads each file of a chain by itself, because they are not trusted alike."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        trusted = Path(os.path.abspath(filename)).is_relative_to(_MODEL_ZOO)
        if not trusted:
            with cls._open_cfg(filename) as file:
                _check(yaml.compose(file, yaml.SafeLoader), filename)
        return super().load_yaml_with_base(filename, allow_unsafe=trusted)


def _check(root: yaml.Node | None, filename: str) -> None:
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"The config {filename} holds no KEY: VALUE lines: write some.")
    for node in _nodes(root):
        if node.tag not in yaml.SafeLoader.yaml_constructors:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise UserError(
                f"{_place(node, filename)} holds the tag {tag}, and a config runs no code: write "
                "the value itself."
            )
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, _ in node.value:
                if key.tag not in _KEYS:
                    raise UserError(
                        f"{_place(key, filename)} holds a key that is no text: write a name, in "
                        "quotes where YAML takes it for something else."
                    )
                if key.value in keys:
                    raise UserError(
                        f"{_place(key, filename)} gives {key.value} a second time, and only one "
                        "would count: join the two."
                    )
                keys.add(key.value)


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            todo += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value


def _place(node: yaml.Node, filename: str) -> str:
    return f"Line {node.start_mark.line + 1} of {filename}"
