"""Reads config files: YAML with Detectron2's ``_BASE_`` chains. No file of a user can run code.

Detectron2 itself executes tags such as ``!!python/object/apply:os.system`` in every file it reads.
"""

import os
from pathlib import Path
from typing import Any, ClassVar

import detectron2
import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from dpk_det.config.shipped import find_config
from dpk_det.config.strict_yaml import read_yaml
from dpk_det.errors import UserError

# Trusted like Detectron2's code, of which it is a part: its RetinaNets compute anchors by tags.
_MODEL_ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"


def read_config_file(path: str) -> dict[str, Any]:
    """Read a config file, merged over its ``_BASE_`` files.

    Raises:
        UserError: if one of the files is absent, is no YAML of plain values (see
            :func:`~dpk_det.config.strict_yaml.read_yaml`), or is a base of itself.
    """
    try:
        content = _Reader.load_yaml_with_base(path)
    except UserError:
        raise
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
    """Reads each file of a chain separately, because not all of them are trusted."""

    _above: ClassVar[list[str]] = []

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        path = os.path.abspath(filename)
        if cls._above and not os.path.exists(path):
            path = filename = _find_named(path, cls._above[-1])
        if path in cls._above:
            raise UserError(f"The config {filename} is a _BASE_ of itself: take it out there.")
        trusted = Path(path).is_relative_to(_MODEL_ZOO)
        if not trusted:
            _check_names(read_yaml(Path(PathManager.get_local_path(filename)), "config"), filename)
        cls._above.append(path)
        try:
            return super().load_yaml_with_base(filename, allow_unsafe=trusted)
        finally:
            cls._above.pop()


def _find_named(path: str, above: str) -> str:
    """Find a ``_BASE_`` that is a config of this project or of the model zoo, not a file.

    Args:
        path: the base as Detectron2 resolved it, from the folder of ``above``.
        above: the file that names the base.
    """
    name = os.path.relpath(path, os.path.dirname(above))
    for found in (find_config(name), _MODEL_ZOO / name):
        if os.path.isfile(found):
            return os.path.abspath(found)
    return path


def _check_names(content: Any, filename: str) -> None:
    if not isinstance(content, dict):
        raise UserError(f"The config {filename} holds no KEY: VALUE lines: write some.")
    todo = [content]
    while todo:
        for key, value in todo.pop().items():
            if not isinstance(key, str):
                raise UserError(
                    f"The config {filename} holds the key {key!r}, which YAML takes for no text: "
                    "write it in quotes."
                )
            if isinstance(value, dict):
                todo.append(value)
