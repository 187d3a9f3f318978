"""Training, checking, exporting, launching, and experiments of several trainings."""

from .check import check
from .export import export_student
from .hook import DistillHook
from .launch import launch
from .trainer import DistillTrainer

__all__ = ["DistillHook", "DistillTrainer", "check", "export_student", "launch"]
