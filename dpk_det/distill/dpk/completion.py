"""The transformer that completes the hybrid of student's and teacher's tokens.

Shapes: B images, Cs and Ct channels, H x W cells, k x k cells a token, h x w = N tokens, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpk_det.distill.arguments import Depth, Width
from dpk_det.distill.contract import Level
from dpk_det.distill.dpk.mask import MASKS, prior_count, prior_first
from dpk_det.distill.dpk.tokens import PatchEmbed, PatchExpand, sincos_positions, token_grid
from dpk_det.distill.dpk.transformer import Transformer
from dpk_det.distill.padding import crop
from dpk_det.distill.regression import channel_adapter, standardise
from dpk_det.errors import UserError, find

MLP_RATIO = 2.0
"""Hidden width of the transformers' MLPs as a multiple of D."""


@dataclass(frozen=True)
class TransformerShape:
    """The size of DPK's transformers.

    Attributes:
        token_stride: Pixels of the image along a token's side. A level of stride s has tokens of
            k = max(1, token_stride // s) cells a side, so that levels below that stride share one
            grid of tokens.
        dim: Width D of the transformers, a multiple of 4 and of heads.
        heads: Attention heads.
        encoder_depth: Transformer blocks of the student's and of the teacher's encoder. None: as
            the form says, 0 or in the paper's form 1.
        decoder_depth: Transformer blocks of the decoder. A strong decoder can do the student's work
            for it.

    Raises:
        UserError: when dim suits neither the positions nor the heads.
    """

    token_stride: Width = 32
    dim: Width = 256
    heads: Width = 8
    encoder_depth: Depth | None = None
    decoder_depth: Depth = 1

    def __post_init__(self) -> None:
        if self.dim % 4 or self.dim % self.heads:
            raise UserError(
                f"DPK's dim is {self.dim}: choose a multiple of 4 and of its {self.heads} heads."
            )


class HybridCompletion(nn.Module):
    """Completes a map of one level from the student's tokens and a part of the teacher's.

    Args:
        level: whose channels and names.
        patch: k, cells a token side. grouped: see :func:`~dpk_det.distill.dpk.tokens.patch_groups`.
        dim, heads, mlp_ratio: of the transformers. encoder_depth, decoder_depth: their blocks.
        mask: which tokens take the prior, a name in :data:`~dpk_det.distill.dpk.mask.MASKS`.
        prior: whether those take the teacher's tokens; else a learned token stands there, as in
            masked autoencoders, and the student completes itself.
        shortcut: add the student's map to the result; see :class:`DPK`.
        standard: bring that map's channels to mean 0 and deviation 1 first, as the target's are.
    """

    def __init__(
        self,
        level: Level,
        shape: TransformerShape,
        *,
        grouped: bool,
        mask: str,
        prior: bool,
        shortcut: bool,
        standard: bool,
    ) -> None:
        super().__init__()
        self.patch = patch = max(1, shape.token_stride // level.stride)
        self.dim = dim = shape.dim
        self.mask = find(MASKS, mask, "mask")
        self.student_embed = PatchEmbed(level.student_channels, dim, patch, grouped)
        self.student_encoder = Transformer(dim, shape.encoder_depth, shape.heads, MLP_RATIO)
        self.has_prior = prior
        if prior:
            self.teacher_embed = PatchEmbed(level.teacher_channels, dim, patch, grouped)
            self.teacher_encoder = Transformer(dim, shape.encoder_depth, shape.heads, MLP_RATIO)
        else:
            self.blank = nn.Parameter(torch.zeros(dim))
        self.decoder = Transformer(dim, shape.decoder_depth, shape.heads, MLP_RATIO)
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
        return crop(expanded, size).float() + added, given

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


def _to_width(at: Tensor, dim: int) -> Tensor:
    """Places of tokens, (B, N), as gather and scatter of (B, N, D) want them."""
    return at.unsqueeze(2).expand(-1, -1, dim)
