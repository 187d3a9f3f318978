"""Which tokens take the prior.

Shapes: B images, N tokens an image (padding included).
"""

import torch
from torch import Tensor


def prior_count(ratio: float, n: int) -> int:
    """``round(ratio * n)``, kept within 1..n-1 so that both encoders see a token on every step."""
    return min(max(round(ratio * n), 1), n - 1)


def random_mask(valid: Tensor, ratio: float) -> Tensor:
    """Draw, for each image, a random set of tokens that take the prior.

    Of an image's V valid tokens, ``prior_count(ratio, V)`` take it. Padding tokens fill up the
    rows, so that every image has the same number in all and the batch stays one tensor.

    Args:
        valid: (B, N) bool, false where a token lies in padding. N is at least 2.
        ratio: share of tokens that take the prior, in [0, 1].

    Returns:
        (B, N) bool with exactly ``prior_count(ratio, N)`` true in each row.
    """
    n = valid.shape[1]
    # A random order with the valid tokens first: its first ones take the prior, and behind the
    # valid ones as many padding tokens as are missing to the row's count.
    order = (torch.rand(valid.shape, device=valid.device) + (~valid).float()).argsort(1)
    rank = torch.empty_like(order).scatter_(1, order, _arange_like(order))
    num_valid = valid.sum(1, keepdim=True)
    count = prior_count(ratio, n)
    take = (ratio * num_valid.double()).round().clamp(min=1)
    take = take.minimum(num_valid - 1)  # an only token stays the student's
    take = take.maximum(count - (n - num_valid)).clamp(max=count)  # padding must suffice to fill up
    fill = count - take
    return (rank < take) | ((rank >= num_valid) & (rank < num_valid + fill))


def _arange_like(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device).expand_as(x)


MASKS = {"random": random_mask}
