"""Channel-wise distillation, CWD (Shu et al., ICCV 2021, arXiv:2011.13256).

Shapes: B images, C channels, H x W cells.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dpk_det.errors import UserError

from ..registry import Distiller, Features, Level, Targets, register_distiller
from ..regression import channel_adapters


@register_distiller("cwd")
class CWD(Distiller):
    """Each channel is a distribution over the cells of its image; the two are brought together.

    The softmax over cells with a temperature, and the divergence KL(teacher, student) times its
    square, averaged over channels and images. Cells that lie in padding have no probability. Loss:
    ``loss_cwd``, the sum over levels.

    Args:
        levels: what to distil.
        weight: of the loss. temperature: of the softmax. 10 and 1 in mmrazor's detectors.

    Raises:
        UserError: when the temperature is not positive.
    """

    def __init__(
        self, levels: list[Level], *, weight: float = 10.0, temperature: float = 1.0
    ) -> None:
        super().__init__(levels)
        if temperature <= 0:
            raise UserError(f"CWD's temperature is {temperature}: choose one above 0.")
        self.weight = weight
        self.temperature = temperature
        self.adapters = channel_adapters(levels)

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """See the class; targets are not used."""
        losses = []
        for pair in self.pairs(student, teacher):
            out = self.adapters[pair.level.student](pair.student)
            s, t = (self._log_distribution(x, pair.cells) for x in (out, pair.teacher))
            # in padding both are minus infinity, whose difference means nothing
            gain = torch.where(t.isfinite(), t - s, 0)
            losses.append((t.exp() * gain).sum(2).mean())
        return {"loss_cwd": self.weight * self.temperature**2 * torch.stack(losses).sum()}

    def _log_distribution(self, x: Tensor, cells: Tensor | None) -> Tensor:
        x = x.float() / self.temperature
        if cells is not None:
            x = x.masked_fill(~cells.unsqueeze(1), -torch.inf)
        return F.log_softmax(x.flatten(2), 2)
