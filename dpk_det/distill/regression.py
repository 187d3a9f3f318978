"""Targets and losses, shared by the methods that regress the teacher's map.

Shapes: B images, C channels, H x W cells; ``cells`` is (B, H, W) bool, true where a cell counts, or
None if all count.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpk_det.distill.contract import Level

EPS = 1e-6

Target = tuple[Tensor, Tensor | float]  # what to compare with, and the factor of the error


def raw(teacher: Tensor, cells: Tensor | None) -> Target:
    """The unchanged teacher's map."""
    return teacher, 1.0


def relative(teacher: Tensor, cells: Tensor | None) -> Target:
    """The unchanged map, with the error over its variance: the loss is alike for all teachers."""
    mean, var = channel_moments(teacher, cells)
    # a map of one cell or of constant channels has no variance: its squared mean then counts
    return teacher, 1 / (var.mean().clamp(min=0.01 * mean.square().mean()) + EPS)


def standard(teacher: Tensor, cells: Tensor | None) -> Target:
    """The map with each channel brought to mean 0 and deviation 1 over the batch."""
    return standardise(teacher, cells), 1.0


TARGETS = {"raw": raw, "relative": relative, "standard": standard}


def standardise(x: Tensor, cells: Tensor | None) -> Tensor:
    """Bring each channel to mean 0 and deviation 1 over the valid cells of the batch."""
    if cells is None:
        # The same formula in one forward and one backward kernel. torch.nn.functional's version
        # refuses a single cell.
        return torch.batch_norm(x, None, None, None, None, True, 0.0, EPS, False)
    mean, var = channel_moments(x, cells)
    return (x - mean) * (var + EPS).rsqrt()


def channel_moments(x: Tensor, cells: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over the valid cells of the batch, (1, C, 1, 1) each."""
    if cells is None:
        mean = x.mean((0, 2, 3), keepdim=True)
        # not torch.var_mean, which takes three times as long on a CPU
        return mean, (x - mean).square().mean((0, 2, 3), keepdim=True)
    w, n = cells.unsqueeze(1).float(), cells.sum()
    mean = (x * w).sum((0, 2, 3), keepdim=True) / n
    return mean, ((x - mean).square() * w).sum((0, 2, 3), keepdim=True) / n


def masked_mse(out: Tensor, target: Tensor, cells: Tensor | None) -> Tensor:
    """Mean squared error over channels and valid cells."""
    if cells is None:
        return F.mse_loss(out, target)
    error = (out - target).square().mean(1)
    return error.where(cells, 0).sum() / cells.sum().clamp(min=1)


def channel_divergence(
    out: Tensor, target: Tensor, cells: Tensor | None, temperature: float = 1.0
) -> Tensor:
    """Compare channels as distributions over the cells of an image (CWD, arXiv:2011.13256).

    A softmax with a temperature over the valid cells gives the distributions. The loss is
    KL(target, out) times the temperature's square, averaged over channels and images. A constant
    that is added to a whole channel does not change it.
    """

    def log_distribution(x: Tensor) -> Tensor:
        x = x.float() / temperature
        if cells is not None:
            x = x.masked_fill(~cells.unsqueeze(1), -torch.inf)
        return F.log_softmax(x.flatten(2), 2)

    s, t = log_distribution(out), log_distribution(target)
    # in padding both are minus infinity, and their difference is NaN
    gain = torch.where(t.isfinite(), t - s, 0)
    return temperature**2 * (t.exp() * gain).sum(2).mean()


LOSSES = {"mse": masked_mse, "cwd": channel_divergence}


def channel_adapter(level: Level) -> nn.Module:
    """A 1 x 1 convolution from the student's channels to the teacher's; identity if they agree."""
    if level.student_channels == level.teacher_channels:
        return nn.Identity()
    return nn.Conv2d(level.student_channels, level.teacher_channels, 1)


def channel_adapters(levels: list[Level]) -> nn.ModuleDict:
    """A :func:`channel_adapter` for each level, by the name of the student's map."""
    return nn.ModuleDict({level.student: channel_adapter(level) for level in levels})
