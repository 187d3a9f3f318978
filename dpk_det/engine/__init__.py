"""One training: the command, the trainer, the check before it, and how it is launched."""

from dpk_det.engine.check import check
from dpk_det.engine.launch import launch
from dpk_det.engine.trainer import DistillTrainer

__all__ = ["DistillTrainer", "check", "launch"]
