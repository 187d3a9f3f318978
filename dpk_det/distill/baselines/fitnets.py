"""FitNets (Romero et al., ICLR 2015, arXiv:1412.6550), on every level.

The authors' code is adri-romsor/FitNets on GitHub.

Shapes: B images, Cs and Ct channels, H x W cells.
"""

from torch import Tensor

from dpk_det.distill.arguments import Weight
from dpk_det.distill.baselines.adapted import AdaptedDistiller
from dpk_det.distill.contract import Level, PairedMaps
from dpk_det.distill.registry import register_distiller
from dpk_det.distill.regression import TARGETS, masked_mse
from dpk_det.errors import find


@register_distiller("fitnets")
class FitNets(AdaptedDistiller):
    """Regresses the student's map onto the teacher's, by a 1 x 1 convolution if channels differ.

    This is the paper's hint loss, with the mean instead of half the sum. Loss: ``loss_fitnets``,
    the mean over levels.

    Args:
        levels: What to distil.
        weight: Weight of the loss. The paper gives none, because its hint stage has no other loss.
        target: What the map is compared with: "raw" (as in the paper), "relative" or "standard", as
            in DPK.

    Raises:
        UserError: for an unknown target.
    """

    name = "fitnets"

    def __init__(self, levels: list[Level], *, weight: Weight = 1.0, target: str = "raw") -> None:
        super().__init__(levels, weight)
        self.target = find(TARGETS, target, "target")

    def level_loss(self, pair: PairedMaps, out: Tensor) -> Tensor:
        """See the base."""
        target, scale = self.target(pair.teacher.float(), pair.cells)
        return scale * masked_mse(out.float(), target, pair.cells) / len(self.levels)
