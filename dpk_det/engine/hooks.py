"""Hooks and writers of the trainer that Detectron2 does not have."""

import logging
from typing import Any

from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, get_event_storage

from dpk_det.engine.resume.checkpoints import FINAL
from dpk_det.engine.signals import Stopped


class SaveHook(HookBase):
    """Saves a checkpoint every ``period`` steps, and the final model after the last step.

    Args:
        period: steps from one checkpoint to the next.
    """

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        """Save if this step is due."""
        if (self.trainer.iter + 1) % self.period == 0:
            self.trainer.save_checkpoint()
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self.trainer.save_checkpoint(FINAL)


class SavingEvalHook(EvalHook):
    """Detectron2's hook, but a signal in an evaluation between two steps loses none of the steps.

    Several ranks do not save, because they are at different places in the evaluation.
    """

    def after_step(self) -> None:
        """Evaluate if this step is due.

        Raises:
            Stopped: when a signal came.
        """
        try:
            super().after_step()
        except Stopped:
            if comm.get_world_size() == 1:
                self.trainer.save_checkpoint()
            raise


class PriorPrinter(CommonMetricPrinter):
    """Detectron2's console line, followed by each level's prior ratio and CKA."""

    def __init__(self, max_iter: int) -> None:
        super().__init__(max_iter)
        self.logger = _PriorAdapter(self.logger, {})


class _PriorAdapter(logging.LoggerAdapter):
    def process(self, msg: str, kwargs: Any) -> tuple[str, Any]:
        shown: dict[str, list[str]] = {}
        for name, (value, _) in get_event_storage().latest().items():
            method, slash, metric = name.partition("/")
            what, _, level = metric.partition("_")
            if slash and what in ("ratio", "cka"):
                shown.setdefault(f"{method} {what}", []).append(f"{level} {value:.2f}")
        return "  ".join([msg, *(f"{k}: {', '.join(v)}" for k, v in shown.items())]), kwargs
