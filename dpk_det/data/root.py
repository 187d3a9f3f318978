"""Locations of datasets."""

import os


def datasets_root() -> str:
    """Return the folder of all datasets: ``$DETECTRON2_DATASETS``, or ``datasets`` if unset.

    Every call reads the variable. Datasets registered by name keep the folder that was set when
    :mod:`dpk_det.data` was imported, because Detectron2's own datasets do so too.
    """
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def expand(path: str) -> str:
    """Expand ``~`` and environment variables in a config's path, and make it absolute."""
    path = os.path.expanduser(os.path.expandvars(path))
    # PathManager also takes addresses such as https://..., which must stay unchanged.
    return path if "://" in path else os.path.abspath(path)
