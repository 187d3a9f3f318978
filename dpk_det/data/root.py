"""Where data lie."""

import os


def datasets_root() -> str:
    """Return the folder of all datasets: ``$DETECTRON2_DATASETS``, or ``datasets`` without it.

    The variable is read on every call; the datasets registered by name keep the folder that it gave
    when :mod:`dpk_det.data` was imported, because Detectron2's own do.
    """
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def expand(path: str) -> str:
    """A path or address of a config, absolute, ``~`` and environment variables expanded."""
    path = os.path.expanduser(os.path.expandvars(path))
    # PathManager also takes addresses such as https://..., which have no working directory.
    return path if "://" in path else os.path.abspath(path)
