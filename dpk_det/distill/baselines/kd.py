"""Logit distillation, KD (Hinton et al., NIPS Deep Learning Workshop 2014, arXiv:1503.02531).

It works on the heads of detectors and classifiers.

Shapes: n places, K classes.
"""

from torch import Tensor
from torch.nn import functional as F

from dpk_det.distill.arguments import Temperature, Weight
from dpk_det.distill.baselines.logits import LogitsDistiller
from dpk_det.distill.contract import Level, Logits
from dpk_det.distill.registry import register_distiller


@register_distiller("kd")
class KD(LogitsDistiller):
    """Brings the student's class probabilities to the teacher's.

    Regions and whole images (softmax): the divergence KL(teacher, student) of softened
    probabilities times the temperature's square, averaged over regions or images. Dense heads and
    proposals (sigmoid): the same for each yes or no, summed and divided by the number of places
    where the teacher expects an object. In the same way, dense heads divide their own loss by the
    true number. Losses: ``loss_kd_HEAD`` for each head that both networks have.

    Args:
        levels: Not used.
        weight: Weight of the heads that classify (regions, dense heads, images).
        rpn_weight: Weight of the proposals' objectness; 0 leaves it out.
        temperature: Temperature T of the softened probabilities.
    """

    name = "kd"

    def __init__(
        self,
        levels: list[Level],
        *,
        weight: Weight = 1.0,
        rpn_weight: Weight = 0.0,
        temperature: Temperature = 1.0,
    ) -> None:
        super().__init__(levels)
        self.weight, self.rpn_weight = weight, rpn_weight
        self.temperature = temperature
        if rpn_weight:
            self.heads = self.heads | {"rpn"}

    def head_loss(self, head: str, student: Logits, teacher: Logits) -> Tensor:
        """See the base."""
        weight = self.rpn_weight if head == "rpn" else self.weight
        return weight * softened_kl(student, teacher, self.temperature)


def softened_kl(student: Logits, teacher: Logits, temperature: float) -> Tensor:
    """``T^2 KL(teacher, student)`` of softened probabilities, normalised as in :class:`KD`."""
    s, t = (x.values.float() for x in (student, teacher))
    if student.exclusive:
        log_s, log_t = (F.log_softmax(x / temperature, 1) for x in (s, t))
        return (
            temperature**2
            * F.kl_div(log_s, log_t, reduction="sum", log_target=True)
            / max(len(s), 1)
        )
    return temperature**2 * binary_kl(s / temperature, t / temperature).sum() / expected_objects(t)


def binary_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher, student) for each yes or no, from logits of any shape."""
    p = teacher.sigmoid()
    return p * (F.logsigmoid(teacher) - F.logsigmoid(student)) + (1 - p) * (
        F.logsigmoid(-teacher) - F.logsigmoid(-student)
    )


def expected_objects(teacher: Tensor) -> Tensor:
    """Number of the n cells where the teacher expects an object of any class; at least 1."""
    return teacher.amax(1).sigmoid().sum().clamp(min=1)
