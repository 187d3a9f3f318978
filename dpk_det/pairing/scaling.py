"""Scales a config to the number of processes that run it."""

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm


def scale_to_processes(cfg: CfgNode, num_processes: int = 0) -> CfgNode:
    """Scale rates and steps from ``SOLVER.REFERENCE_WORLD_SIZE`` to the number of processes.

    Detectron2's trainers scale all but ``DISTILL.WARMUP_ITERS``. A config that is already scaled is
    returned unchanged.

    Args:
        cfg: the config.
        num_processes: their number; 0: that of the running ones.
    """
    num_processes = num_processes or comm.get_world_size()
    scaled = DefaultTrainer.auto_scale_workers(cfg, num_processes)
    if scaled is cfg:
        return cfg
    share = num_processes / cfg.SOLVER.REFERENCE_WORLD_SIZE
    was_frozen = scaled.is_frozen()
    scaled.defrost()
    scaled.DISTILL.WARMUP_ITERS = round(cfg.DISTILL.WARMUP_ITERS / share)
    if was_frozen:
        scaled.freeze()
    return scaled
