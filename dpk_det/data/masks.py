"""Check masks of a COCO JSON file: polygons and run-length codes, as pycocotools reads them."""

from typing import Any

from dpk_det.data.coco_format import Image, RunLengths

_FAR = 10**6  # pixels; pycocotools walks along every side of a polygon, and crashes on long ones


def polygons(segmentation: Any) -> list[list[float]]:
    """Return a mask's polygons, each [x, y, x, y, ...]; [] for a run-length code."""
    return segmentation if isinstance(segmentation, list) else []


def is_no_polygon(segmentation: Any) -> bool:
    """Return whether a polygon has an odd number of coordinates, or no polygon has three points."""
    lengths = [len(polygon) for polygon in polygons(segmentation)]
    return bool(lengths) and (max(lengths) < 6 or any(n % 2 for n in lengths))


def is_far(segmentation: Any) -> bool:
    """Return whether a polygon has a point far from any image."""
    return any(max(p) > _FAR or min(p) < -_FAR for p in polygons(segmentation) if p)


def fills(segmentation: Any, image: Image | None) -> bool:
    """Return whether a run-length code covers exactly its image's pixels; True for polygons."""
    if not isinstance(segmentation, RunLengths) or image is None:
        return True
    size = image.height, image.width
    return segmentation.size == size and _num_pixels(segmentation.counts) == size[0] * size[1]


def _num_pixels(counts: list[int] | str) -> int:
    """Return how many pixels a run-length code covers; -1 if it cannot be read.

    COCO's text holds 5 bits per character, lowest first. Bit 6 says that more characters follow.
    From the fourth run on, the text holds the difference to the run two places before.
    """
    if not isinstance(counts, str):
        return sum(counts)
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode():
        character -= 48
        if not 0 <= character < 64:
            return -1
        value |= (character & 31) << shift
        shift += 5
        if character & 32:
            continue
        if character & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if runs[-1] < 0:
            return -1
        value = shift = 0
    return -1 if shift else sum(runs)
