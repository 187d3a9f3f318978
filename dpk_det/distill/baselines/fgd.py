"""Focal and global distillation, FGD (Yang et al., CVPR 2022, arXiv:2111.11837).

The authors' code is yzd-v/FGD on GitHub.

Shapes: B images, Cs and Ct channels, H x W cells.
"""

import torch
from torch import Tensor, nn

from dpk_det.distill.arguments import Temperature, Weight
from dpk_det.distill.contract import Distiller, Features, Level, PairedMaps, Targets
from dpk_det.distill.registry import register_distiller
from dpk_det.distill.regression import channel_adapters
from dpk_det.errors import UserError


@register_distiller("fgd")
class FGD(Distiller):
    """Distils objects and background separately, and also attention and the relations of pixels.

    Losses, each summed over cells, channels and levels and averaged over images:
    ``loss_fgd_focal`` (squared error in objects and in the background, weighted by the teacher's
    attention), ``loss_fgd_attention`` (absolute difference between the networks' attention) and
    ``loss_fgd_global`` (squared error between both maps after GcNet's block).

    Args:
        levels: What to distil.
        alpha: Weight of objects; 5e-5 in the authors' two-stage configs, 1e-3 in one-stage ones.
        beta: Weight of the background; 2.5e-5 in two-stage configs, 5e-4 in one-stage ones.
        gamma: Weight of attention; 5e-5 in two-stage configs, 5e-4 in one-stage ones.
        lambda_: Weight of the global part; 5e-7 in two-stage configs, 5e-6 in one-stage ones.
        temperature: Temperature of the attention.

    Raises:
        UserError: in training, when images have no boxes, which mark the objects.
    """

    def __init__(
        self,
        levels: list[Level],
        *,
        alpha: Weight = 5e-5,
        beta: Weight = 2.5e-5,
        gamma: Weight = 5e-5,
        lambda_: Weight = 5e-7,
        temperature: Temperature = 0.5,
    ) -> None:
        super().__init__(levels)
        self.alpha, self.beta, self.gamma, self.lambda_ = alpha, beta, gamma, lambda_
        self.temperature = temperature
        self.adapters = channel_adapters(levels)
        self.student_context, self.teacher_context = (
            nn.ModuleDict(
                {level.student: GlobalContext(level.teacher_channels) for level in levels}
            )
            for _ in range(2)
        )

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """See the class."""
        if targets is None:
            raise UserError("FGD tells objects by their boxes, but these images have none.")
        sums = [torch.stack(self._level(pair, targets)) for pair in self.pairs(student, teacher)]
        focal, attention, context = torch.stack(sums).sum(0) / len(targets.boxes)
        return {
            "loss_fgd_focal": focal,
            "loss_fgd_attention": self.gamma * attention,
            "loss_fgd_global": self.lambda_ * context,
        }

    def _level(self, pair: PairedMaps, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        name = pair.level.student
        s, t = pair.clear(self.adapters[name](pair.student)).float(), pair.teacher.float()
        (s_cells, s_channels), (t_cells, t_channels) = (
            attention(x, pair.cells, self.temperature) for x in (s, t)
        )
        weight = self._object_weights(pair, targets)
        error = (s - t).square() * t_channels[:, :, None, None]
        focal = (error.sum(1) * t_cells * weight).sum()
        likeness = (s_cells - t_cells).abs().sum() + (s_channels - t_channels).abs().sum()
        context = (
            self.student_context[name](s, pair.cells) - self.teacher_context[name](t, pair.cells)
        ).square()
        return focal, likeness, pair.clear(context).sum()

    def _object_weights(self, pair: PairedMaps, targets: Targets) -> Tensor:
        """(B, H, W): alpha / the object's area in objects, beta / the background's area elsewhere.

        A cell in several objects counts for the smallest.
        """
        weights = []
        size = pair.student.shape[-2:]
        for boxes, (rows, cols) in zip(targets.boxes, pair.extents, strict=True):
            inside = box_shares(boxes, pair.level.stride, size)
            valid = inside.new_zeros(size)
            valid[:rows, :cols] = 1
            background = (inside == 0) * valid
            weights.append(
                self.alpha * inside + self.beta * background / background.sum().clamp(min=1)
            )
        return torch.stack(weights)


def attention(x: Tensor, cells: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Measure in which cells and in which channels a map is strong.

    Args:
        x: (B, C, H, W), zero in cells that are not valid.
        cells: (B, H, W) bool, true for valid cells; None: all.
        temperature: temperature of both softmaxes.

    Returns:
        (B, H, W), which sums to the number of valid cells, and (B, C), which sums to C.
    """
    channels = x.shape[1]
    strength = x.abs().mean(1).flatten(1) / temperature
    if cells is None:
        num_cells = strength.new_full((len(x), 1), strength.shape[1])
    else:
        strength = strength.masked_fill(~cells.flatten(1), -torch.inf)
        num_cells = cells.flatten(1).sum(1, keepdim=True)
    means = x.abs().sum((2, 3)) / num_cells
    where = (num_cells * strength.softmax(1)).view(len(x), *x.shape[2:])
    return where, channels * (means / temperature).softmax(1)


def box_shares(boxes: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """(H, W): 1 / the number of cells of the smallest box that covers a cell; 0 without a box.

    A box covers the cells inside its edges, which are rounded outwards.

    Args:
        boxes: (n, 4) in pixels.
        stride: pixels per cell.
        size: (H, W).
    """
    left, top = (boxes[:, :2] / stride).floor().unbind(1)
    right, bottom = (boxes[:, 2:] / stride).ceil().unbind(1)
    rows = torch.arange(size[0], device=boxes.device).view(1, -1, 1)
    cols = torch.arange(size[1], device=boxes.device).view(1, 1, -1)
    left, top, right, bottom = (x.view(-1, 1, 1) for x in (left, top, right, bottom))
    covered = (rows >= top) & (rows < bottom) & (cols >= left) & (cols < right)
    area = ((right - left) * (bottom - top)).clamp(min=1)
    shares = torch.zeros((1, *size), device=boxes.device)
    return torch.cat([shares, covered / area]).amax(0)


class GlobalContext(nn.Module):
    """The block of GcNet (Cao et al. 2019), with a bottleneck half as wide as the map.

    One attention map pools the whole image to a vector. A small bottleneck transforms the vector,
    which is then added to every cell. At first it adds zero.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attend = nn.Conv2d(channels, 1, 1)
        hidden = max(channels // 2, 1)
        self.transform = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels),
        )
        nn.init.kaiming_normal_(self.attend.weight)
        nn.init.zeros_(self.attend.bias)
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, x: Tensor, cells: Tensor | None) -> Tensor:
        """Add the image's context to every cell; cells: (B, H, W) bool, false in the padding."""
        logits = self.attend(x).flatten(1)
        if cells is not None:
            logits = logits.masked_fill(~cells.flatten(1), -torch.inf)
        context = torch.einsum("bcn,bn->bc", x.flatten(2), logits.softmax(1))
        return x + self.transform(context)[:, :, None, None]
