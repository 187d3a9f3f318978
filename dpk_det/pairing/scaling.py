"""A config made for another number of processes."""

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm


def scale_to_processes(cfg: CfgNode) -> CfgNode:
    """Scale rates and steps as ``SOLVER.REFERENCE_WORLD_SIZE`` asks for; a scaled config stays.

    Detectron2's trainers do so with all but ``DISTILL.WARMUP_ITERS``.
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
