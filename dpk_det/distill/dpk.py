"""Dynamic Prior Knowledge (Qiu et al., ICLR 2023, arXiv:2206.06067).

Part of the teacher's map is fed in as prior knowledge: at a share of positions the student's tokens
are replaced by the teacher's, a transformer completes the hybrid, and the result is regressed onto
the teacher's map. The share follows the feature gap, ``1 - CKA``. docs/method.md has the whole.

Shapes: B images, Cs and Ct channels, H x W cells, k x k cells a token, h x w = N tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpk_det.errors import UserError

from .cka import MinibatchCKA
from .mask import MASKS, prior_count
from .ratio import RATIOS
from .registry import Distiller, Features, Level, PairedMaps, find, register_distiller
from .tokens import (
    PatchEmbed,
    PatchExpand,
    pad_to_tokens,
    sincos_positions,
    token_grid,
    valid_mask,
)
from .transformer import Transformer


class HybridCompletion(nn.Module):
    """Completes a map of one level from the student's tokens and a part of the teacher's.

    Args:
        level: whose channels and names.
        patch: k, cells a token side.
        dim, heads, mlp_ratio: of the transformers. encoder_depth, decoder_depth: their blocks.
        mask: which tokens take the prior, a name in :data:`~dpk_det.distill.mask.MASKS`.
        shortcut: add the student's map to the result; see :class:`DPK`.
    """

    def __init__(
        self,
        level: Level,
        patch: int,
        *,
        dim: int,
        heads: int,
        mlp_ratio: float,
        encoder_depth: int,
        decoder_depth: int,
        mask: str,
        shortcut: bool,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.dim = dim
        self.mask = find(MASKS, mask, "mask")
        self.student_embed = PatchEmbed(level.student_channels, dim, patch)
        self.teacher_embed = PatchEmbed(level.teacher_channels, dim, patch)
        self.student_encoder = Transformer(dim, encoder_depth, heads, mlp_ratio)
        self.teacher_encoder = Transformer(dim, encoder_depth, heads, mlp_ratio)
        self.decoder = Transformer(dim, decoder_depth, heads, mlp_ratio)
        self.expand = PatchExpand(dim, level.teacher_channels, patch)
        self.shortcut = None
        if shortcut:
            same = level.student_channels == level.teacher_channels
            self.shortcut = (
                nn.Identity()
                if same
                else nn.Conv2d(level.student_channels, level.teacher_channels, 1)
            )
            nn.init.zeros_(self.expand.weight)  # at first the student's map is all there is
            nn.init.zeros_(self.expand.bias)

    def forward(
        self, student: Tensor, teacher: Tensor, ratio: float, valid: Tensor | None
    ) -> Tensor:
        """Complete the hybrid map.

        Args:
            student: (B, Cs, H, W). teacher: (B, Ct, H, W). Both zero where not valid.
            ratio: share of tokens that take the prior.
            valid: (B, h, w) bool, tokens that are not padding; None: all.

        Returns:
            (B, Ct, H, W), the completed map; what stands at padding means nothing.
        """
        size = tuple(student.shape[-2:])
        # in float32: under autocast a small correction of a large map would be lost
        added = 0.0 if self.shortcut is None else self.shortcut(student).float()
        h, w = token_grid(*size, self.patch)
        if h * w == 1:
            # One token cannot be both the student's and the teacher's: put padding beside it, so
            # that each encoder has a token and each parameter a gradient.
            student, teacher = (F.pad(x, (0, 2 * self.patch - size[1])) for x in (student, teacher))
            valid = torch.tensor([[[True, False]]], device=student.device).expand(
                len(student), 1, 2
            )
            w = 2
        positions = sincos_positions(h, w, self.dim, student.device)
        s = self.student_embed(student) + positions
        t = self.teacher_embed(teacher) + positions

        padded = valid is not None
        valid = valid.flatten(1) if padded else s.new_ones(s.shape[:2], dtype=torch.bool)
        order = (~self.mask(valid, ratio)).byte().argsort(1)  # the prior's first
        prior, own = order.tensor_split([prior_count(ratio, h * w)], 1)
        encoded = [
            encoder(_take(x, at), valid.gather(1, at) if padded else None)
            for encoder, x, at in (
                (self.teacher_encoder, t, prior),
                (self.student_encoder, s, own),
            )
        ]
        hybrid = _take(torch.cat(encoded, 1), order.argsort(1)) + positions
        completed = self.decoder(hybrid, valid if padded else None)
        expanded = self.expand(completed, (h * self.patch, w * self.patch))
        return expanded[..., : size[0], : size[1]].float() + added


@register_distiller("dpk")
class DPK(Distiller):
    """The DPK distiller.

    Losses: ``loss_dpk``, the mean over levels of the mean squared error over valid cells, weighted.
    Metrics, per level: ``dpk/ratio_NAME``, ``dpk/cka_NAME`` and ``dpk/loss_NAME`` (unweighted).

    Args:
        levels: what to distil.
        weight: of the loss.
        token_stride: pixels of the image along a token's side. A level of stride s has tokens of
            ``k = max(1, token_stride // s)`` cells a side, so that levels below that stride share
            one grid of tokens.
        dim: D, a multiple of 4 and of heads. heads: attention heads. mlp_ratio: MLP width over D.
        encoder_depth, decoder_depth: blocks of the encoders and of the decoder.
        ratio: schedule of the prior ratio, a name in :data:`~dpk_det.distill.ratio.RATIOS`.
        ratio_min, ratio_max: bounds of the gap schedule. ratio_fixed: of the fixed one.
        mask: which tokens take the prior, a name in :data:`~dpk_det.distill.mask.MASKS`.
        target: what the completed map is compared with. "raw": the teacher's map; "relative": the
            same, and the error is divided by the map's variance over the batch, so that the loss is
            alike for all teachers and levels; "standard": the map with each channel brought to
            mean 0 and deviation 1 over the batch.
        shortcut: add the student's map to what the transformer makes, as it is where both have the
            same channels and else through a 1 x 1 convolution. The transformer then learns what the
            student's map lacks, and the student is drawn to the teacher's very channels, which
            inherited heads understand. Not in the paper.
        cka_momentum: share of the old average in the running HSIC terms.

    Raises:
        UserError: for an unknown schedule, mask or target, or numbers that do not fit.
    """

    def __init__(
        self,
        levels: list[Level],
        *,
        weight: float = 1.0,
        token_stride: int = 32,
        dim: int = 256,
        heads: int = 8,
        mlp_ratio: float = 2.0,
        encoder_depth: int = 1,
        decoder_depth: int = 1,
        ratio: str = "gap",
        ratio_min: float = 0.0,
        ratio_max: float = 1.0,
        ratio_fixed: float = 0.5,
        mask: str = "random",
        target: str = "relative",
        shortcut: bool = True,
        cka_momentum: float = 0.98,
    ) -> None:
        super().__init__(levels)
        if heads < 1 or dim % 4 or dim % heads:
            raise UserError(f"DPK's dim is {dim}: choose a multiple of 4 and of its {heads} heads.")
        if not 0 <= ratio_min <= ratio_max <= 1:
            raise UserError(
                f"DPK's ratio_min is {ratio_min} and its ratio_max {ratio_max}: choose numbers "
                "from 0 to 1, the smaller first."
            )
        if not 0 <= ratio_fixed <= 1:
            raise UserError(f"DPK's ratio_fixed is {ratio_fixed}: choose a number from 0 to 1.")
        if token_stride < 1:
            raise UserError(f"DPK's token_stride is {token_stride}: choose one of 1 pixel or more.")
        if not 0 <= cka_momentum < 1:
            raise UserError(f"DPK's cka_momentum is {cka_momentum}: choose a number below 1.")
        self.weight = weight
        self.schedule = find(RATIOS, ratio, "ratio schedule")
        self.bounds = {"low": ratio_min, "high": ratio_max, "fixed": ratio_fixed}
        self.target = find(TARGETS, target, "target")
        self.cka = MinibatchCKA(len(levels), cka_momentum)
        self.completions = nn.ModuleDict(
            {
                level.student: HybridCompletion(
                    level,
                    max(1, token_stride // level.stride),
                    dim=dim,
                    heads=heads,
                    mlp_ratio=mlp_ratio,
                    encoder_depth=encoder_depth,
                    decoder_depth=decoder_depth,
                    mask=mask,
                    shortcut=shortcut,
                )
                for level in levels
            }
        )

    def forward(
        self, student: Features, teacher: Features, targets: Any = None
    ) -> dict[str, Tensor]:
        """See the class and :class:`~dpk_det.distill.registry.Distiller`; targets are not used."""
        views = [
            _View(p, self.completions[p.level.student].patch) for p in self.pairs(student, teacher)
        ]
        cka = self.cka.update([view.samples() for view in views])
        ratios = self.schedule(cka, **self.bounds)
        losses = []
        # waits for the device: token counts are shapes, which the host must know
        for view, ratio in zip(views, ratios.tolist(), strict=True):
            completion = self.completions[view.level.student]
            out = completion(view.student, view.teacher, ratio, view.tokens)
            target, scale = self.target(view.teacher.float(), view.cells)
            losses.append(scale * _masked_mse(out.float(), target, view.cells))
        self.metrics = {
            f"dpk/{what}_{view.level.student}": value.detach()
            for what, values in (("ratio", ratios), ("cka", cka), ("loss", losses))
            for view, value in zip(views, values, strict=True)
        }
        return {"loss_dpk": self.weight * torch.stack(losses).mean()}


class _View:
    """One level as the method sees it: maps cleared of padding, and masks of cells and tokens."""

    def __init__(self, pair: PairedMaps, patch: int) -> None:
        size = tuple(pair.student.shape[-2:])
        device = pair.student.device
        grid = token_grid(*size, patch)
        self.level = pair.level
        self.patch = patch
        self.extents = [token_grid(h, w, patch) for h, w in pair.extents]
        self.cells = valid_mask(pair.extents, size, device)
        self.tokens = valid_mask(self.extents, grid, device)
        self.student, self.teacher = (
            x if self.cells is None else x.where(self.cells.unsqueeze(1), 0)
            for x in (pair.student, pair.teacher)
        )

    def samples(self) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """Each token's mean feature in either network, as :func:`~.cka.hsic_terms` takes them."""
        cells = (
            self.student.new_ones(1, 1, *self.student.shape[-2:])
            if self.cells is None
            else self.cells.unsqueeze(1)
        )
        x, y, share = (
            F.avg_pool2d(pad_to_tokens(z.detach().float(), self.patch), self.patch)
            for z in (self.student, self.teacher, cells)
        )
        # a token at the border is the mean of its valid cells only: with the zeros around them both
        # networks would shrink alike there, which CKA takes for likeness
        x, y = ((z / share.clamp(min=1e-6)).permute(0, 2, 3, 1).flatten(0, 2) for z in (x, y))
        valid = None if self.tokens is None else self.tokens.flatten()
        return x, y, valid, sum(h * w for h, w in self.extents)


Target = tuple[Tensor, Tensor | float]  # what to compare with, and the factor of the error


def _raw(teacher: Tensor, cells: Tensor | None) -> Target:
    return teacher, 1.0


def _relative(teacher: Tensor, cells: Tensor | None) -> Target:
    mean, var = _channel_moments(teacher, cells)
    # a map of one cell, or a dead one, has no variance: then its size is what counts
    return teacher, 1 / (var.mean().clamp(min=0.01 * mean.square().mean()) + EPS)


def _standard(teacher: Tensor, cells: Tensor | None) -> Target:
    mean, var = _channel_moments(teacher, cells)
    return (teacher - mean) * (var + EPS).rsqrt(), 1.0


TARGETS = {"raw": _raw, "relative": _relative, "standard": _standard}
EPS = 1e-6


def _channel_moments(x: Tensor, cells: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over the valid cells of the batch, (1, C, 1, 1) each."""
    if cells is None:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return mean, var
    w, n = cells.unsqueeze(1).float(), cells.sum()
    mean = (x * w).sum((0, 2, 3), keepdim=True) / n
    return mean, ((x - mean).square() * w).sum((0, 2, 3), keepdim=True) / n


def _masked_mse(out: Tensor, target: Tensor, cells: Tensor | None) -> Tensor:
    if cells is None:
        return F.mse_loss(out, target)
    error = (out - target).square().mean(1)
    return error.where(cells, 0).sum() / cells.sum()


def _take(tokens: Tensor, at: Tensor) -> Tensor:
    return tokens.gather(1, at.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
