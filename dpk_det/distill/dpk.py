"""Dynamic Prior Knowledge (Qiu et al., ICLR 2023, arXiv:2206.06067).

Part of the teacher's map is fed in as prior knowledge: at a share of positions the student's tokens
are replaced by the teacher's, a transformer completes the hybrid, and the result is regressed onto
the teacher's map. The share follows the feature gap, ``1 - CKA``. docs/method.md has the whole.

Shapes: B images, Cs and Ct channels, H x W cells, k x k cells a token, h x w = N tokens, D width.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from dpk_det.errors import UserError

from .arguments import Depth, Share, Steps, Weight, Width
from .cka import MIN_SAMPLES, MinibatchCKA
from .mask import MASKS, prior_count, prior_first
from .ratio import RATIOS
from .registry import (
    Distiller,
    Features,
    Level,
    PairedMaps,
    Targets,
    find,
    register_distiller,
)
from .regression import LOSSES, TARGETS, channel_adapter, standardise
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
        patch: k, cells a token side. grouped: see :func:`~dpk_det.distill.tokens.patch_groups`.
        dim, heads, mlp_ratio: of the transformers. encoder_depth, decoder_depth: their blocks.
        mask: which tokens take the prior, a name in :data:`~dpk_det.distill.mask.MASKS`.
        prior: whether those take the teacher's tokens; else a learned token stands there, as in
            masked autoencoders, and the student completes itself.
        shortcut: add the student's map to the result; see :class:`DPK`.
        standard: bring that map's channels to mean 0 and deviation 1 first, as the target's are.
    """

    def __init__(
        self,
        level: Level,
        patch: int,
        *,
        grouped: bool,
        dim: int,
        heads: int,
        mlp_ratio: float,
        encoder_depth: int,
        decoder_depth: int,
        mask: str,
        prior: bool,
        shortcut: bool,
        standard: bool,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.dim = dim
        self.mask = find(MASKS, mask, "mask")
        self.student_embed = PatchEmbed(level.student_channels, dim, patch, grouped)
        self.student_encoder = Transformer(dim, encoder_depth, heads, mlp_ratio)
        self.has_prior = prior
        if prior:
            self.teacher_embed = PatchEmbed(level.teacher_channels, dim, patch, grouped)
            self.teacher_encoder = Transformer(dim, encoder_depth, heads, mlp_ratio)
        else:
            self.blank = nn.Parameter(torch.zeros(dim))
        self.decoder = Transformer(dim, decoder_depth, heads, mlp_ratio)
        self.expand = PatchExpand(dim, level.teacher_channels, patch, grouped)
        self.shortcut = channel_adapter(level) if shortcut else None
        self.standard = standard
        if shortcut:
            nn.init.zeros_(self.expand.weight)  # at first the student's map is all there is
            nn.init.zeros_(self.expand.bias)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        ratio: float,
        valid: Tensor | None,
        cells: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Complete the hybrid map.

        Args:
            student: (B, Cs, H, W). teacher: (B, Ct, H, W). Both zero where not valid.
            ratio: share of tokens that take the prior.
            valid: (B, h, w) bool, tokens that are not padding; None: all.
            cells: (B, H, W) bool, cells that are not padding; None: all.

        Returns:
            (B, Ct, H, W), the completed map; what stands at padding means nothing. And (B, h, w)
            bool, true for the tokens that took the prior.
        """
        size = tuple(student.shape[-2:])
        added = 0.0
        if self.shortcut is not None:
            # in float32: under autocast a small correction of a large map would be lost
            added = self.shortcut(student).float()
            if self.standard:
                added = standardise(added, cells)
        h, w = token_grid(*size, self.patch)
        if h * w == 1:
            # One token cannot be both the student's and the teacher's: put padding beside it, so
            # that each encoder has a token and each parameter a gradient.
            student, teacher = (F.pad(x, (0, 2 * self.patch - size[1])) for x in (student, teacher))
            first = torch.arange(2, device=student.device) == 0
            valid = first.expand(len(student), 1, 2)
            w = 2
        layout = student.new_ones(len(student), h, w, dtype=torch.bool) if valid is None else valid
        flat = None if valid is None else valid.flatten(1)
        order = prior_first(self.mask(layout), flat, ratio)
        prior, own = order.tensor_split([prior_count(ratio, h * w)], 1)
        positions = sincos_positions(h, w, self.dim, student.device)
        mixed = self._mix(student, teacher, prior, own, positions, flat)
        completed = self.decoder(mixed + positions, flat)
        expanded = self.expand(completed, (h * self.patch, w * self.patch))
        given = torch.zeros_like(layout.flatten(1)).scatter_(1, prior, True).unflatten(1, (h, w))
        return expanded[..., : size[0], : size[1]].float() + added, given

    def _mix(
        self,
        student: Tensor,
        teacher: Tensor,
        prior: Tensor,
        own: Tensor,
        positions: Tensor,
        valid: Tensor | None,
    ) -> Tensor:
        """(B, N, D), encoded tokens: the student's, and the teacher's or blanks at the prior."""

        def encode(embed: nn.Module, encoder: nn.Module, x: Tensor, at: Tensor) -> Tensor:
            tokens = (embed(x) + positions).gather(1, _to_width(at, self.dim))
            return encoder(tokens, None if valid is None else valid.gather(1, at))

        encoded = encode(self.student_embed, self.student_encoder, student, own)
        if self.has_prior:
            given = encode(self.teacher_embed, self.teacher_encoder, teacher, prior)
        else:
            given = self.blank.to(encoded.dtype).expand(*prior.shape, -1)
        tokens, at = torch.cat([given, encoded], 1), torch.cat([prior, own], 1)
        return torch.empty_like(tokens).scatter(1, _to_width(at, self.dim), tokens)


@register_distiller("dpk")
class DPK(Distiller):
    """The DPK distiller.

    Losses: ``loss_dpk``, the mean over levels of the mean squared error over valid cells.
    Metrics, per level: ``dpk/ratio_NAME``, ``dpk/cka_NAME`` and ``dpk/loss_NAME`` (unweighted).

    Args:
        levels: what to distil.
        weight: of the loss.
        level_weights: factor of each level's error before the mean, finest level first; none: 1.
        token_stride: pixels of the image along a token's side. A level of stride s has tokens of
            ``k = max(1, token_stride // s)`` cells a side, so that levels below that stride share
            one grid of tokens.
        grouped: embed tokens and expand them by convolutions of k groups, with a k-th of the
            weights and arithmetic. Not in the paper.
        dim: D, a multiple of 4 and of heads. heads: attention heads. mlp_ratio: MLP width over D.
        encoder_depth, decoder_depth: blocks of the encoders and of the decoder.
        prior: whether the teacher's tokens are given; False is the paper's ablation without prior
            knowledge: the student completes itself.
        ratio: schedule of the prior ratio, a name in :data:`~dpk_det.distill.ratio.RATIOS`.
        ratio_min, ratio_max: its bounds. ratio_fixed: the ratio of the fixed one.
        mask: which tokens take the prior, a name in :data:`~dpk_det.distill.mask.MASKS`.
        target: what the completed map is compared with, a name in
            :data:`~dpk_det.distill.regression.TARGETS`. "raw": the teacher's map; "relative": the
            same, and the error is divided by the map's variance over the batch, so that the loss is
            alike for all teachers and levels; "standard": the map with each channel brought to
            mean 0 and deviation 1 over the batch, and so is the student's map in the shortcut,
            which leaves the student its own scale.
        loss: how the two are compared, a name in :data:`~dpk_det.distill.regression.LOSSES`: "mse",
            the mean squared error; "cwd", as channel-wise distillation does.
        positions: the cells whose error counts: "all", or "student": those of tokens that did not
            take the prior.
        shortcut: add the student's map to what the transformer makes, as it is where both have the
            same channels and else through a 1 x 1 convolution. The transformer then learns what the
            student's map lacks, and the student is drawn to the teacher's very channels, which
            inherited heads understand. Not in the paper.
        cka_of: what a sample of CKA is: "tokens", or "images" (the tokens that all of a batch have;
            the batch of each process must have 4).
        cka_kernel: a name in :data:`~dpk_det.distill.cka.KERNELS`.
        cka_window: steps that the running CKA looks back on. cka_every: steps from one measurement
            to the next.

    Raises:
        UserError: for an unknown name, or numbers that do not fit.
    """

    def __init__(
        self,
        levels: list[Level],
        *,
        weight: Weight = 12.0,
        level_weights: Sequence[Weight] = (),
        token_stride: Width = 32,
        grouped: bool = True,
        dim: Width = 256,
        heads: Width = 8,
        mlp_ratio: Annotated[float, Meta(gt=0, le=16)] = 2.0,
        encoder_depth: Depth = 1,
        decoder_depth: Depth = 1,
        prior: bool = True,
        ratio: str = "gap",
        ratio_min: Share = 0.0,
        ratio_max: Share = 1.0,
        ratio_fixed: Share = 0.5,
        mask: str = "random",
        target: str = "standard",
        loss: str = "mse",
        positions: str = "all",
        shortcut: bool = True,
        cka_of: str = "tokens",
        cka_kernel: str = "linear",
        cka_window: Steps = 50,
        cka_every: Steps = 4,
    ) -> None:
        super().__init__(levels)
        if dim % 4 or dim % heads:
            raise UserError(f"DPK's dim is {dim}: choose a multiple of 4 and of its {heads} heads.")
        if ratio_min > ratio_max:
            raise UserError(
                f"DPK's ratio_min is {ratio_min} and its ratio_max {ratio_max}: give the smaller "
                "one first."
            )
        if level_weights and len(level_weights) != len(levels):
            raise UserError(
                f"DPK has {len(level_weights)} level_weights but learns on {len(levels)} levels "
                f"({', '.join(level.student for level in levels)}): give one each, or none."
            )
        if level_weights and not any(level_weights):
            raise UserError("DPK's level_weights are all 0: give one level more, or none a weight.")
        self.weight = weight
        self.level_weights = tuple(level_weights) or (1.0,) * len(levels)
        self.schedule = find(RATIOS, ratio, "ratio schedule")
        self.low, self.high = ratio_min, ratio_max
        if ratio == "fixed":
            self.low = self.high = ratio_fixed
        self.target = find(TARGETS, target, "target")
        self.loss = find(LOSSES, loss, "loss of DPK")
        self.errs_at_student = find(POSITIONS, positions, "choice of positions")
        self.sample = find(SAMPLES, cka_of, "sample of CKA")
        self.cka = MinibatchCKA(len(levels), cka_window, cka_kernel, cka_every)
        self.completions = nn.ModuleDict(
            {
                level.student: HybridCompletion(
                    level,
                    max(1, token_stride // level.stride),
                    grouped=grouped,
                    dim=dim,
                    heads=heads,
                    mlp_ratio=mlp_ratio,
                    encoder_depth=encoder_depth,
                    decoder_depth=decoder_depth,
                    mask=mask,
                    prior=prior,
                    shortcut=shortcut,
                    standard=target == "standard",
                )
                for level in levels
            }
        )

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """See the class and :class:`~dpk_det.distill.registry.Distiller`; targets are not used."""
        views = [
            _View(p, self.completions[p.level.student].patch) for p in self.pairs(student, teacher)
        ]
        cka = self.cka.update(self.sample(view) for view in views)
        # Token counts are shapes, which the host must know. It knows the gap of the step before; to
        # ask for this step's would halt the device.
        ratios = self.schedule(self.cka.before(), self.progress, self.low, self.high).tolist()
        losses = []
        for view, ratio in zip(views, ratios, strict=True):
            pair = view.pair
            out, given = self.completions[pair.level.student](
                pair.student, pair.teacher, ratio, view.tokens, pair.cells
            )
            target, scale = self.target(pair.teacher.float(), pair.cells)
            cells = pair.cells
            if self.errs_at_student:
                own = ~view.to_cells(given)
                cells = own if cells is None else cells & own
            losses.append(scale * self.loss(out, target, cells))
        total = sum(w * loss for w, loss in zip(self.level_weights, losses, strict=True))
        given = torch.tensor(ratios).to(cka.device, non_blocking=True)
        self.metrics = {
            f"dpk/{what}_{view.pair.level.student}": value.detach()
            for what, values in (("ratio", given), ("cka", cka), ("loss", losses))
            for view, value in zip(views, values, strict=True)
        }
        return {"loss_dpk": self.weight * total / len(views)}


class _View:
    """One level as the method sees it: its maps, and which tokens are valid."""

    def __init__(self, pair: PairedMaps, patch: int) -> None:
        grid = token_grid(*pair.student.shape[-2:], patch)
        self.pair = pair
        self.patch = patch
        self.extents = [token_grid(h, w, patch) for h, w in pair.extents]
        self.tokens = valid_mask(self.extents, grid, pair.student.device)

    def means(self) -> tuple[Tensor, Tensor]:
        """Each token's mean feature in either network, (B, Cs, h, w) and (B, Ct, h, w)."""
        student, cells = self.pair.student, self.pair.cells
        x, y = self._mean(student), self._mean(self.pair.teacher)
        size = student.shape[-2:]
        if cells is None and not any(side % self.patch for side in size):
            return x, y
        # a token at the border is the mean of its valid cells only: with the zeros around them both
        # networks would shrink alike there, which CKA takes for likeness
        cells = student.new_ones(1, 1, *size) if cells is None else cells.unsqueeze(1)
        share = self._mean(cells).clamp(min=1e-6)
        return x / share, y / share

    def _mean(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(pad_to_tokens(x.detach().float(), self.patch), self.patch)

    def to_cells(self, tokens: Tensor) -> Tensor:
        """What is said of tokens, (B, h, w), said of their cells, (B, H, W)."""
        height, width = self.pair.student.shape[-2:]
        for axis in (1, 2):
            tokens = tokens.repeat_interleave(self.patch, axis)
        return tokens[:, :height, :width]


Samples = tuple[Tensor, Tensor, Tensor | None, int]  # as hsic_terms takes them


def _token_samples(view: _View) -> Samples:
    x, y = (z.permute(0, 2, 3, 1).flatten(0, 2) for z in view.means())
    valid = None if view.tokens is None else view.tokens.flatten()
    return x, y, valid, sum(h * w for h, w in view.extents)


def _image_samples(view: _View) -> Samples:
    # the corner that all images have: elsewhere both networks would be alike in having nothing
    h, w = (min(sides) for sides in zip(*view.extents, strict=True))
    x, y = (z[..., :h, :w].flatten(1) for z in view.means())
    if len(x) < MIN_SAMPLES:
        raise UserError(
            f"CKA of images needs {MIN_SAMPLES} images a process but got {len(x)}: raise "
            "SOLVER.IMS_PER_BATCH or choose DISTILL.DPK.CKA_OF tokens."
        )
    return x, y, None, len(x)


SAMPLES = {"tokens": _token_samples, "images": _image_samples}
POSITIONS = {"all": False, "student": True}


def _to_width(at: Tensor, dim: int) -> Tensor:
    """Places of tokens, (B, N), as gather and scatter of (B, N, D) want them."""
    return at.unsqueeze(2).expand(-1, -1, dim)
