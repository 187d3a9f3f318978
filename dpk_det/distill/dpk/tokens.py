"""From feature maps to tokens and back.

Shapes: B images, C channels, H x W cells of the map, k x k cells per token, h x w = N tokens, D
width.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpk_det.distill.padding import crop


def token_grid(height: int, width: int, k: int) -> tuple[int, int]:
    """The (h, w) grid of tokens that covers a map of height x width cells."""
    return math.ceil(height / k), math.ceil(width / k)


def pad_to_tokens(x: Tensor, k: int) -> Tensor:
    """Pad a (B, C, H, W) map with zeros at the right and bottom to whole tokens of k x k cells."""
    height, width = x.shape[-2:]
    h, w = token_grid(height, width, k)
    if (h * k, w * k) == (height, width):
        return x  # torch would copy it
    return F.pad(x, (0, w * k - width, 0, h * k - height))


def patch_groups(channels: int, dim: int, k: int, grouped: bool) -> int:
    """Number of channel groups in the convolutions that embed and expand tokens of k x k cells.

    If grouped, it is the largest divisor of k that divides both widths, so that weights and
    arithmetic per token grow with k instead of k^2. The transformer mixes the groups. Otherwise it
    is 1.
    """
    return math.gcd(channels, dim, k) if grouped else 1


class PatchEmbed(nn.Conv2d):
    """Maps to tokens: a k x k convolution of stride k, (B, C, H, W) to (B, N, D)."""

    def __init__(self, channels: int, dim: int, k: int, grouped: bool = False) -> None:
        groups = patch_groups(channels, dim, k, grouped)
        super().__init__(channels, dim, k, stride=k, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Embed a map; sides that are no multiple of k are padded."""
        return super().forward(pad_to_tokens(x, self.stride[0])).flatten(2).transpose(1, 2)


class PatchExpand(nn.ConvTranspose2d):
    """Tokens to maps: the transposed convolution, (B, N, D) to (B, C, H, W)."""

    def __init__(self, dim: int, channels: int, k: int, grouped: bool = False) -> None:
        groups = patch_groups(channels, dim, k, grouped)
        super().__init__(dim, channels, k, stride=k, groups=groups)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Expand tokens to a map of size (H, W), and crop the padding."""
        h, w = token_grid(*size, self.stride[0])
        return crop(super().forward(tokens.transpose(1, 2).unflatten(2, (h, w))), size)


@lru_cache(maxsize=64)
def sincos_positions(h: int, w: int, dim: int, device: torch.device) -> Tensor:
    """Fixed 2-D sine-cosine positions of an h x w grid, (h * w, dim).

    Half of the width codes the row and half the column, each with frequencies from 1 to 1/10000
    (Vaswani et al. 2017; in two dimensions as MAE does). Nothing is learned, so any grid works.

    Raises:
        ValueError: when dim is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"The token width is {dim}: choose a multiple of 4.")
    freqs = 10000.0 ** -(torch.arange(dim // 4, device=device) / (dim // 4))
    codes = []
    for length in (h, w):
        angles = torch.arange(length, device=device).unsqueeze(1) * freqs
        codes.append(torch.cat([angles.sin(), angles.cos()], 1))
    rows, cols = codes
    grid = torch.cat([rows.unsqueeze(1).expand(-1, w, -1), cols.expand(h, -1, -1)], 2)
    return grid.flatten(0, 1)
