"""Finds the folder ``configs/``, which the installed package contains."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# a wheel has the folder inside the package, a clone has it beside the package
CONFIGS = next((x for x in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if x.is_dir()), None)
"""Folder of the project's own configs and suites; None if they are not installed."""


def find_config(path: str) -> str:
    """Return the path of the config or suite that ``path`` names; it need not exist.

    Relative paths start at the working directory, and ``~`` is expanded. If the file does not exist
    and the path begins with ``configs/``, the project's own config of that name is taken.
    """
    expanded = os.path.expanduser(path)
    if CONFIGS is None or os.path.exists(expanded):
        return expanded
    top, _, rest = path.partition("/")
    shipped = CONFIGS / rest
    return str(shipped) if top == CONFIGS.name and rest and os.path.isfile(shipped) else expanded
