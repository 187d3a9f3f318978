"""Pearson correlation distillation, PKD (Cao et al., NeurIPS 2022, arXiv:2207.02039).

Shapes: B images, C channels, H x W cells.
"""

import torch
from torch import Tensor

from ..registry import Distiller, Features, Level, Targets, register_distiller
from ..regression import channel_adapters, masked_mse, standardise


@register_distiller("pkd")
class PKD(Distiller):
    """Half the squared error of standardised maps, which is 1 minus their Pearson correlation.

    Each channel of either map is brought to mean 0 and deviation 1 over all images and cells, so
    that neither scale nor offset of the teacher's features must be imitated (section 3.2 of the
    paper). Loss: ``loss_pkd``, the sum over levels.

    Args:
        levels: what to distil.
        weight: of the loss; 6 for two-stage detectors, 10 for one-stage ones in the authors'
            configs.
    """

    def __init__(self, levels: list[Level], *, weight: float = 6.0) -> None:
        super().__init__(levels)
        self.weight = weight
        self.adapters = channel_adapters(levels)

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """See the class; targets are not used."""
        losses = []
        for pair in self.pairs(student, teacher):
            out = self.adapters[pair.level.student](pair.student)
            s, t = (standardise(x.float(), pair.cells) for x in (out, pair.teacher))
            losses.append(masked_mse(s, t, pair.cells) / 2)
        return {"loss_pkd": self.weight * torch.stack(losses).sum()}
