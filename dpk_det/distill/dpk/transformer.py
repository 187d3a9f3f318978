"""A small pre-norm transformer on ``scaled_dot_product_attention``.

Shapes: B images, N tokens, D width, A attention heads.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Self-attention and an MLP, each with a LayerNorm before it and a shortcut around both.

    Args:
        dim: D.
        heads: A, a divisor of D.
        mlp_ratio: hidden width of the MLP as a multiple of D.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); keys: (B, 1, 1, N) bool, false for tokens in padding."""
        x = x + self.attend(self.norm1(x), keys)
        return x + self.mlp(self.norm2(x))

    def attend(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Multi-head self-attention."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.proj(out.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """A stack of blocks and a last LayerNorm.

    Args:
        dim: as for :class:`Block`.
        depth: number of blocks; with 0, only the LayerNorm is left.
        heads: as for :class:`Block`.
        mlp_ratio: as for :class:`Block`.

    Raises:
        ValueError: when heads does not divide dim.
    """

    def __init__(self, dim: int, depth: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}: choose a divisor.")
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.apply(_init_weights)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map (B, N, D) to (B, N, D).

        Args:
            x: tokens.
            valid: (B, N) bool, false where a token lies in padding and may not be attended to. An
                image without valid tokens attends to its padding, but nothing reads the result.
        """
        keys = None
        if valid is not None:
            keys = (valid | ~valid.any(1, keepdim=True))[:, None, None]
        for block in self.blocks:
            x = block(x, keys)
        return self.norm(x)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
