"""Channel-wise distillation, CWD (Shu et al., ICCV 2021, arXiv:2011.13256).

Shapes: B images, C channels, H x W cells.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dpk_det.errors import UserError

from ..registry import Level, PairedMaps, register_distiller
from .adapted import AdaptedDistiller


@register_distiller("cwd")
class CWD(AdaptedDistiller):
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

    name = "cwd"

    def __init__(
        self, levels: list[Level], *, weight: float = 10.0, temperature: float = 1.0
    ) -> None:
        super().__init__(levels, weight)
        if temperature <= 0:
            raise UserError(f"CWD's temperature is {temperature}: choose one above 0.")
        self.temperature = temperature

    def level_loss(self, pair: PairedMaps, out: Tensor) -> Tensor:
        """See the base."""
        s, t = (self._log_distribution(x, pair.cells) for x in (out, pair.teacher))
        # in padding both are minus infinity, whose difference means nothing
        gain = torch.where(t.isfinite(), t - s, 0)
        return self.temperature**2 * (t.exp() * gain).sum(2).mean()

    def _log_distribution(self, x: Tensor, cells: Tensor | None) -> Tensor:
        x = x.float() / self.temperature
        if cells is not None:
            x = x.masked_fill(~cells.unsqueeze(1), -torch.inf)
        return F.log_softmax(x.flatten(2), 2)
