"""Where the datasets lie."""

import os


def datasets_root() -> str:
    """Return the folder of all datasets: ``$DETECTRON2_DATASETS``, or ``datasets`` without it.

    The variable is read on every call; the datasets registered by name keep the folder that it gave
    when :mod:`dpk_det.data` was imported, because Detectron2's own do.
    """
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
