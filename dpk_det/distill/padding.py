"""Tells which cells of a map belong to the image and which are padding, and cuts maps.

Shapes: B images, H x W cells.
"""

import math

import torch
from torch import Tensor


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a (B, C, H, W) map at the right and bottom to a size (height, width)."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x  # a slice would copy the whole gradient
    return x[..., : size[0], : size[1]]


def valid_cells(
    image_sizes: list[tuple[int, int]] | None, stride: int, batch: int, size: tuple[int, int]
) -> list[tuple[int, int]]:
    """Count the rows and columns of each image's map that lie at least partly in the image.

    Args:
        image_sizes: (height, width) of each image in pixels before padding; None: no padding.
        stride: pixels per cell.
        batch: B.
        size: (H, W) of the map in cells.
    """
    if image_sizes is None:
        return [size] * batch
    return [
        (min(math.ceil(h / stride), size[0]), min(math.ceil(w / stride), size[1]))
        for h, w in image_sizes
    ]


def valid_mask(
    extents: list[tuple[int, int]], size: tuple[int, int], device: torch.device
) -> Tensor | None:
    """(B, H, W) bool, true in the extent of each image, at top left; None if no image is padded."""
    if all(extent == tuple(size) for extent in extents):
        return None  # lets attention and the loss take their unmasked, faster path
    # built on the host, from host numbers, and sent over in one copy
    mask = torch.zeros(len(extents), *size, dtype=torch.bool)
    for image, (h, w) in zip(mask, extents, strict=True):
        image[:h, :w] = True
    return mask.to(device, non_blocking=True)
