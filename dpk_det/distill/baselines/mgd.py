"""Masked generative distillation, MGD (Yang et al., ECCV 2022, arXiv:2205.01529).

The authors' code is yzd-v/MGD on GitHub.

Shapes: B images, Cs and Ct channels, H x W cells.
"""

import torch
from torch import Tensor, nn

from dpk_det.distill.arguments import PartialShare, Weight
from dpk_det.distill.baselines.adapted import AdaptedDistiller
from dpk_det.distill.contract import Level, PairedMaps
from dpk_det.distill.registry import register_distiller


@register_distiller("mgd")
class MGD(AdaptedDistiller):
    """Blanks cells of the student's map, from which two convolutions must restore the teacher's.

    The squared error is summed over cells and channels and averaged over images. Loss:
    ``loss_mgd``, the sum over levels.

    Args:
        levels: What to distil.
        weight: Weight of the loss, the paper's alpha; 5e-7 for two-stage detectors, 2e-5 for
            one-stage ones.
        mask_ratio: Share of cells that are blanked, the paper's lambda; 0.45 for two-stage
            detectors, 0.65 for one-stage ones in the authors' configs.
    """

    name = "mgd"

    def __init__(
        self,
        levels: list[Level],
        *,
        weight: Weight = 5e-7,
        mask_ratio: PartialShare = 0.45,
    ) -> None:
        super().__init__(levels, weight)
        self.mask_ratio = mask_ratio
        self.generators = nn.ModuleDict(
            {
                level.student: nn.Sequential(
                    nn.Conv2d(level.teacher_channels, level.teacher_channels, 3, padding=1),
                    nn.ReLU(),
                    nn.Conv2d(level.teacher_channels, level.teacher_channels, 3, padding=1),
                )
                for level in levels
            }
        )

    def level_loss(self, pair: PairedMaps, out: Tensor) -> Tensor:
        """See the base."""
        kept = torch.rand(len(out), 1, *out.shape[2:], device=out.device) >= self.mask_ratio
        first, relu, second = self.generators[pair.level.student]
        # the padding is zero before each convolution, as outside an image that fills its batch
        out = pair.clear(second(pair.clear(relu(first(out * kept)))))
        return (out.float() - pair.teacher.float()).square().sum() / len(out)
