"""The files that a training writes into its folder before the first step, and its log."""

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import defaults
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from dpk_det.errors import UserError
from dpk_det.files import write_whole

LOGGERS = ("fvcore", "detectron2", "dpk_det")


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Start log.txt, write config.yaml and seed, as Detectron2's ``default_setup`` does.

    Unlike ``default_setup``, it never leaves an empty config.yaml if the process is killed.

    Raises:
        UserError: when the disk is full.
    """
    rank = comm.get_rank()
    if comm.is_main_process():
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    for name in LOGGERS:
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    logger = logging.getLogger("detectron2")
    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", defaults.collect_env_info())
    logger.info("Command line arguments: %s", args)
    logger.info("Running with full config:\n%s", cfg.dump())
    if comm.is_main_process():
        write_whole(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
    # Each process gets its own seed, so that processes draw different regions and masks.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


@contextlib.contextmanager
def lenient_logs(folder: str) -> Iterator[None]:
    """Suppress tracebacks from the log files during a training, if the disk is full.

    Logging would print a traceback for each line that it cannot write, and one more at exit. The
    lines are also on the console, and the next file that is written reports the full disk.
    """
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    except UserError:
        for logger in map(logging.getLogger, LOGGERS):
            for handler in list(logger.handlers):
                stream = getattr(handler, "stream", None)
                if str(getattr(stream, "name", "")).startswith(f"{folder}{os.sep}log.txt"):
                    logger.removeHandler(handler)
                    with contextlib.suppress(OSError):
                        stream.close()
        raise
    finally:
        logging.raiseExceptions = before
