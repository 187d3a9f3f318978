"""Knowledge review, ReviewKD (Chen et al., CVPR 2021, arXiv:2104.09044).

The authors' code is dvlab-research/ReviewKD on GitHub.

Shapes: B images, Cs and Ct channels, M channels of the fused maps, H x W cells.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpk_det.distill.arguments import Weight, Width
from dpk_det.distill.contract import Distiller, Features, Level, Targets
from dpk_det.distill.registry import register_distiller
from dpk_det.distill.regression import masked_mse

POOLED = (4, 2, 1)  # cells per side of the pooled maps in the context loss


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that uses its running moments for a batch of one cell, which has no variance."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a (B, C, H, W) map."""
        if x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class Fusion(nn.Module):
    """Attention-based fusion, ABF, of a level's map with the fused map of the next coarser level.

    Args:
        level: gives the numbers of channels.
        mid: M.
        top: whether this is the coarsest level, which has no coarser one.
    """

    def __init__(self, level: Level, mid: int, top: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(level.student_channels, mid, 1, bias=False), BatchNorm(mid)
        )
        self.expand = nn.Sequential(
            nn.Conv2d(mid, level.teacher_channels, 3, padding=1, bias=False),
            BatchNorm(level.teacher_channels),
        )
        self.attend = None if top else nn.Conv2d(2 * mid, 2, 1)

    def forward(self, x: Tensor, above: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            x: (B, Cs, H, W), the level's map.
            above: (B, M, ., .) of the next coarser level; None for the coarsest.

        Returns:
            (B, Ct, H, W) to compare with the teacher's map, and (B, M, H, W) for the next finer
            level.
        """
        x = self.reduce(x)
        if above is not None:
            above = F.interpolate(above, x.shape[-2:], mode="nearest")
            shares = self.attend(torch.cat([x, above], 1)).sigmoid()
            x = x * shares[:, :1] + above * shares[:, 1:]
        return self.expand(x), x


@register_distiller("reviewkd")
class ReviewKD(Distiller):
    """Each teacher level is learned from the student's same and coarser levels, fused top down.

    The loss of a level is the hierarchical context loss, HCL: the squared error of the maps and,
    with halving weights, of the maps pooled to 4 x 4, 2 x 2 and 1 cell.
    Loss: ``loss_reviewkd``, the sum over levels.

    Args:
        levels: What to distil.
        weight: Weight of the loss.
        mid: Channels M of the fused maps; 256 in the authors' detectors.
    """

    def __init__(self, levels: list[Level], *, weight: Weight = 1.0, mid: Width = 256) -> None:
        super().__init__(levels)
        self.weight = weight
        self.fusions = nn.ModuleDict(
            {level.student: Fusion(level, mid, top=level is levels[-1]) for level in levels}
        )

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """See the class; targets are not used."""
        losses, above = [], None
        for pair in reversed(list(self.pairs(student, teacher))):
            out, above = self.fusions[pair.level.student](pair.student, above)
            losses.append(context_loss(out.float(), pair.teacher.float(), pair.cells))
        return {"loss_reviewkd": self.weight * torch.stack(losses).sum()}


def context_loss(out: Tensor, target: Tensor, cells: Tensor | None) -> Tensor:
    """HCL of two (B, C, H, W) maps.

    Padded cells do not count in the error of the full maps, and are zero before pooling. A pooled
    map whose side is not below H is skipped.
    """
    if cells is not None:
        out, target = (x.where(cells.unsqueeze(1), 0) for x in (out, target))
    loss, total, weight = masked_mse(out, target, cells), 1.0, 1.0
    for side in POOLED:
        if side >= out.shape[2]:
            continue
        weight /= 2
        a, b = (F.adaptive_avg_pool2d(x, side) for x in (out, target))
        loss = loss + weight * F.mse_loss(a, b)
        total += weight
    return loss / total
