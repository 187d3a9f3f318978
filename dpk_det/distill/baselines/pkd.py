"""Pearson correlation distillation, PKD (Cao et al., NeurIPS 2022, arXiv:2207.02039).

The authors' code is part of open-mmlab/mmrazor on GitHub.

Shapes: B images, C channels, H x W cells.
"""

from torch import Tensor

from dpk_det.distill.arguments import Weight
from dpk_det.distill.baselines.adapted import AdaptedDistiller
from dpk_det.distill.contract import Level, PairedMaps
from dpk_det.distill.registry import register_distiller
from dpk_det.distill.regression import masked_mse, standardise


@register_distiller("pkd")
class PKD(AdaptedDistiller):
    """Half the mean squared error of standardised maps, which is 1 minus their Pearson correlation.

    Each channel of both maps is brought to mean 0 and deviation 1 over all images and cells, so
    that the student need not imitate the scale or offset of the teacher's features. Loss:
    ``loss_pkd``, the sum over levels.

    Args:
        levels: What to distil.
        weight: Weight of the loss; 6 for two-stage detectors, 10 for one-stage ones in the authors'
            configs.
    """

    name = "pkd"

    def __init__(self, levels: list[Level], *, weight: Weight = 6.0) -> None:
        super().__init__(levels, weight)

    def level_loss(self, pair: PairedMaps, out: Tensor) -> Tensor:
        """See the base."""
        s, t = (standardise(x.float(), pair.cells) for x in (out, pair.teacher))
        return masked_mse(s, t, pair.cells) / 2
