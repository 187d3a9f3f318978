"""``IMPORTS``: the user's own modules, which every command imports."""

import importlib
import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from dpk_det.errors import UserError, check_names, reason


def import_modules(names: Any, where: str = "IMPORTS") -> list[ModuleType]:
    """Import modules by name; the working directory is searched too.

    Args:
        names: a list of module names, such as "my_project" or "my_project.methods".
        where: the key that errors name.

    Raises:
        UserError: if ``names`` is no list of names, or a module is absent or fails.
    """
    if not isinstance(names, list | tuple):
        raise UserError(f'{where} is {names!r}: write a list of modules, ["my_project"].')
    check_names(names, where)
    if names and os.getcwd() not in sys.path:  # Python only adds the script's folder
        sys.path.append(os.getcwd())
    return [_import(name, where) for name in names]


def _import(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name and (name == e.name or name.startswith(f"{e.name}.")):
            raise UserError(
                f"{where} names the module {name}, which is neither below {os.getcwd()} nor in "
                "PYTHONPATH: correct it."
            ) from e
        raise UserError(f"The module {name} of {where} needs {e.name}: install it.") from e
    except Exception as e:  # a module can raise anything
        raise UserError(
            f"The module {name} of {where} fails ({type(e).__name__}: {reason(e)}): correct it."
        ) from e


def add_keys(cfg: Any, modules: Iterable[ModuleType]) -> None:
    """Let modules add their own config keys: call ``add_config(cfg)`` of each that has it."""
    for module in modules:
        if hasattr(module, "add_config"):
            module.add_config(cfg)
