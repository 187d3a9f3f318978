"""Base of the methods that compare maps level by level.

Shapes: B images, Cs and Ct channels, H x W cells.
"""

import torch
from torch import Tensor

from dpk_det.distill.contract import Distiller, Features, Level, PairedMaps, Targets
from dpk_det.distill.regression import channel_adapters


class AdaptedDistiller(Distiller):
    """Brings the student's maps to the teacher's channels and sums a loss over the levels.

    Args:
        levels: the levels to distil.
        weight: weight of the loss ``loss_NAME``, where NAME is the subclass's name.
    """

    name: str

    def __init__(self, levels: list[Level], weight: float) -> None:
        super().__init__(levels)
        self.weight = weight
        self.adapters = channel_adapters(levels)

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """See the class; targets are not used."""
        losses = [
            self.level_loss(pair, pair.clear(self.adapters[pair.level.student](pair.student)))
            for pair in self.pairs(student, teacher)
        ]
        return {f"loss_{self.name}": self.weight * torch.stack(losses).sum()}

    def level_loss(self, pair: PairedMaps, out: Tensor) -> Tensor:
        """The loss of one level, unweighted.

        Args:
            pair: maps of the level.
            out: (B, Ct, H, W), the student's map in the teacher's channels, zero in the padding.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it compares.")
