"""Logs lines once, to a logger that has handlers."""

import logging
from typing import Any

from detectron2.utils import comm


def tell(message: str, *args: Any) -> None:
    """Log a line with the logger "dpk_det", in the main process only.

    If a project has only set up Detectron2's logger, the line goes to Detectron2's log.
    """
    if not comm.is_main_process():
        return
    logger = logging.getLogger("dpk_det")
    if not logger.hasHandlers():
        logger.setLevel(logging.INFO)
        for handler in logging.getLogger("detectron2").handlers:
            logger.addHandler(handler)
    logger.info(message, *args)
