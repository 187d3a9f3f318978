"""The folder ``configs/``, which an installed package carries along."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# of a wheel below the package, of a clone beside it
CONFIGS = next((x for x in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if x.is_dir()), None)
"""Where the project's own configs and suites lie; None where they are not installed."""


def find_config(path: str) -> str:
    """Return where the config or suite that ``path`` names is, or would be.

    A path is taken from the working directory, ``~`` expanded. If there is no such file and the
    path begins with ``configs/``, it is the project's own config of that name.
    """
    expanded = os.path.expanduser(path)
    if CONFIGS is None or os.path.exists(expanded):
        return expanded
    top, _, rest = path.partition("/")
    shipped = CONFIGS / rest
    return str(shipped) if top == CONFIGS.name and rest and os.path.isfile(shipped) else expanded
