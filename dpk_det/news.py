"""What happened, said once and where it is heard."""

import logging
from typing import Any

from detectron2.utils import comm


def tell(message: str, *args: Any) -> None:
    """Log a line through the logger "dpk_det", from the first process alone.

    A project that has set up Detectron2's logger, and none of this name, finds the line in
    Detectron2's log.
    """
    if not comm.is_main_process():
        return
    logger = logging.getLogger("dpk_det")
    if not logger.hasHandlers():
        logger.setLevel(logging.INFO)
        for handler in logging.getLogger("detectron2").handlers:
            logger.addHandler(handler)
    logger.info(message, *args)
