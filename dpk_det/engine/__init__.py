"""One training: its command, trainer, check before the start, and launcher."""

from dpk_det.engine.check import check
from dpk_det.engine.launch import launch
from dpk_det.engine.trainer import DistillTrainer

__all__ = ["DistillTrainer", "check", "launch"]
