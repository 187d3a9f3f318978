"""Decides when distillation counts, and how much."""

from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage, get_event_storage

from dpk_det.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """How distillation changes during a training.

    Attributes:
        max_iter: steps of the training. Progress is the step in Detectron2's event storage over
            this number. None: the caller sets ``distiller.progress``.
        warmup_iters: W. Step i of the first W, from 0, multiplies the distillation losses by
            (i + 1) / W. Needs Detectron2's event storage.
        stop_at: progress from which the student learns from its own task alone and the teacher does
            not run; 1: never.
        grad_share: value to which each method's gradient at the student's maps is steered, as a
            share of the gradient of the student's own losses; 0: weights stay unchanged.
        grad_share_every: steps from one measurement of that share to the next; 0: never.

    Raises:
        UserError: when ``stop_at`` is not in [0, 1], or ``grad_share`` is negative or never
            measured.
    """

    max_iter: int | None = None
    warmup_iters: int = 0
    stop_at: float = 1.0
    grad_share: float = 0.0
    grad_share_every: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.stop_at <= 1:
            raise UserError(f"stop_at is {self.stop_at}: write a share of the training, 0 to 1.")
        if not self.grad_share >= 0:
            raise UserError(f"grad_share is {self.grad_share}: write 0 or more.")
        if self.grad_share and not self.grad_share_every:
            raise UserError(
                f"grad_share is {self.grad_share} but grad_share_every is 0: write 1 or more, "
                "because only what is measured can be steered."
            )

    def progress(self, storage: EventStorage | None) -> float | None:
        """The share of the training that is done; None where the caller sets it."""
        return min(storage.iter / self.max_iter, 1.0) if storage and self.max_iter else None

    def is_over(self, progress: float) -> bool:
        """Whether distillation has ended."""
        return self.stop_at < 1 and progress >= self.stop_at

    def warmth(self, storage: EventStorage | None) -> float:
        """Factor of the distillation losses in this step.

        Raises:
            UserError: when a warm-up has no event storage that counts its steps.
        """
        if self.warmup_iters <= 0:
            return 1.0
        if storage is None:
            raise UserError(
                "A warm-up (DISTILL.WARMUP_ITERS) counts steps by Detectron2's event storage: run "
                "the loop within `with EventStorage() as storage`, or set warmup_iters to 0."
            )
        return min((storage.iter + 1) / self.warmup_iters, 1.0)


def schedule_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Read a :class:`Schedule` from a config, except ``max_iter``, which the trainer knows."""
    keys = ("WARMUP_ITERS", "STOP_AT", "GRAD_SHARE", "GRAD_SHARE_EVERY")
    return {key.lower(): cfg.DISTILL[key] for key in keys}


def event_storage() -> EventStorage | None:
    """Return Detectron2's event storage, or None in a training loop that has none."""
    try:
        return get_event_storage()
    except AssertionError:
        return None
