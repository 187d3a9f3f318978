"""``IMPORTS``: modules of somebody's own, known to every command."""

import importlib
import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from dpk_det.errors import UserError, check_names, reason


def import_modules(names: Any, where: str = "IMPORTS") -> list[ModuleType]:
    """Import modules by name, from the working directory too.

    Args:
        names: a list of them, "my_project" or "my_project.methods". where: the key, for errors.

    Raises:
        UserError: when it is no list of names, or a module is absent or fails.
    """
    if not isinstance(names, list | tuple):
        raise UserError(f'{where} is {names!r}: write a list of modules, ["my_project"].')
    check_names(names, where)
    if names and os.getcwd() not in sys.path:  # which a script in another folder leaves out
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
    except Exception as e:  # whatever the module does
        raise UserError(
            f"The module {name} of {where} fails ({type(e).__name__}: {reason(e)}): correct it."
        ) from e


def add_keys(cfg: Any, modules: Iterable[ModuleType]) -> None:
    """Let modules add config keys of their own, by their ``add_config(cfg)``."""
    for module in modules:
        if hasattr(module, "add_config"):
            module.add_config(cfg)
