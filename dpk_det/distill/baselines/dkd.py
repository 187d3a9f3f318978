"""Decoupled knowledge distillation, DKD (Zhao et al., CVPR 2022, arXiv:2203.08679).

It works on the heads of detectors and classifiers. The authors' code is megvii-research/mdistiller
on GitHub.

Shapes: n places, K classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dpk_det.distill.arguments import Temperature, Weight
from dpk_det.distill.baselines.kd import softened_kl
from dpk_det.distill.baselines.logits import LogitsDistiller
from dpk_det.distill.contract import Level, Logits
from dpk_det.distill.registry import register_distiller


@register_distiller("dkd")
class DKD(LogitsDistiller):
    """KD's loss in two parts with separate weights.

    The loss is ``alpha TCKD + beta NCKD``, times the temperature's square and averaged over regions
    or images. TCKD covers the target class against all others, NCKD the others among themselves.
    A yes or no (dense heads) has only one other class and so no NCKD: its loss is
    alpha times KD's. Losses: ``loss_dkd_HEAD`` for each head that classifies.

    Args:
        levels: Not used.
        alpha: Weight of the target class's part; 1 in the authors' detectors.
        beta: Weight of the other classes' part; 0.25 in the authors' detectors.
        temperature: Temperature T of the softened probabilities.
    """

    name = "dkd"

    def __init__(
        self,
        levels: list[Level],
        *,
        alpha: Weight = 1.0,
        beta: Weight = 0.25,
        temperature: Temperature = 1.0,
    ) -> None:
        super().__init__(levels)
        self.alpha, self.beta = alpha, beta
        self.temperature = temperature

    def head_loss(self, head: str, student: Logits, teacher: Logits) -> Tensor:
        """See the base."""
        if not student.exclusive:
            return self.alpha * softened_kl(student, teacher, self.temperature)
        target_part, other_part = decouple(
            student.values.float(), teacher.values.float(), student.labels, self.temperature
        )
        loss = self.alpha * target_part + self.beta * other_part
        return self.temperature**2 * loss.sum() / max(len(loss), 1)


def decouple(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of each place.

    Args:
        student: (n, K) logits.
        teacher: (n, K) logits.
        labels: (n,) the target classes.
        temperature: T.

    Returns:
        (n,) TCKD and (n,) NCKD.
    """
    target = F.one_hot(labels, student.shape[1]).bool()
    log_s, log_t = (F.log_softmax(x / temperature, 1) for x in (student, teacher))
    two_s, two_t = (
        torch.stack([x[target], x.masked_fill(target, -torch.inf).logsumexp(1)], 1)
        for x in (log_s, log_t)
    )
    others_s, others_t = (
        F.log_softmax(x.masked_fill(target, -torch.inf), 1).masked_fill(target, 0)
        for x in (log_s, log_t)
    )
    target_part = F.kl_div(two_s, two_t, reduction="none", log_target=True).sum(1)
    others = F.kl_div(others_s, others_t, reduction="none", log_target=True)
    return target_part, others.masked_fill(target, 0).sum(1)
