"""Scales a config to the number of processes that run it."""

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm


def scale_to_processes(cfg: CfgNode) -> CfgNode:
    """Scale rates and steps from ``SOLVER.REFERENCE_WORLD_SIZE`` to the number of processes.

    Detectron2's trainers scale all but ``DISTILL.WARMUP_ITERS``. A config that is already scaled is
    returned unchanged.
    """
    scaled = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    if scaled is cfg:
        return cfg
    share = comm.get_world_size() / cfg.SOLVER.REFERENCE_WORLD_SIZE
    was_frozen = scaled.is_frozen()
    scaled.defrost()
    scaled.DISTILL.WARMUP_ITERS = round(cfg.DISTILL.WARMUP_ITERS / share)
    if was_frozen:
        scaled.freeze()
    return scaled
