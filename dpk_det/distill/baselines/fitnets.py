"""FitNets (Romero et al., ICLR 2015, arXiv:1412.6550), on every level.

Shapes: B images, Cs and Ct channels, H x W cells.
"""

import torch
from torch import Tensor

from ..registry import Distiller, Features, Level, Targets, find, register_distiller
from ..regression import TARGETS, channel_adapters, masked_mse


@register_distiller("fitnets")
class FitNets(Distiller):
    """The student's map is regressed onto the teacher's, through a 1 x 1 convolution if need be.

    The paper's hint loss, with the mean in place of half the sum. Loss: ``loss_fitnets``.

    Args:
        levels: what to distil.
        weight: of the loss. The paper has no other loss in its hint stage, hence no weight.
        target: what the map is compared with, a name in
            :data:`~dpk_det.distill.regression.TARGETS`; "raw" is the paper's.

    Raises:
        UserError: for an unknown target.
    """

    def __init__(self, levels: list[Level], *, weight: float = 1.0, target: str = "raw") -> None:
        super().__init__(levels)
        self.weight = weight
        self.target = find(TARGETS, target, "target")
        self.adapters = channel_adapters(levels)

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """See the class; targets are not used."""
        losses = []
        for pair in self.pairs(student, teacher):
            out = self.adapters[pair.level.student](pair.student).float()
            target, scale = self.target(pair.teacher.float(), pair.cells)
            losses.append(scale * masked_mse(out, target, pair.cells))
        return {"loss_fitnets": self.weight * torch.stack(losses).mean()}
