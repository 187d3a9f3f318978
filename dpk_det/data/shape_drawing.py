"""Draw one image of shapes; see :mod:`dpk_det.data.shapes`.

Coordinates are COCO's: continuous, and (0, 0) is the outer corner of the top left pixel.
"""

import functools
import math

import cv2
import numpy as np

CLASSES = ["circle", "square", "triangle", "star", "ring", "cross"]

MAX_OBJECTS = 6
MIN_VISIBLE = 0.4
"""A shape is not placed if less than this share of another shape would stay visible."""

_SUPERSAMPLING = 4  # Masks are drawn this much larger and averaged down, for smooth edges.


def draw_image(seed: int, index: int, size: int = 96) -> tuple[np.ndarray, list[dict]]:
    """Draw one image of the dataset ``seed``; it depends only on the arguments.

    Args:
        seed: which dataset, >= 0.
        index: which image of it, >= 0.
        size: height and width in pixels. The shapes' sizes, 8 to 48 pixels at 96, scale with it.

    Returns:
        The image, (size, size, 3) uint8 in BGR order, and 1 to 6 COCO annotations in drawing order;
        later shapes lie on top. An annotation has ``category_id`` (1-based), ``segmentation`` (one
        polygon), ``bbox`` (x, y, width, height), ``area`` of the polygon in pixels, ``iscrowd`` 0,
        but no ``id`` and ``image_id``. Polygon and box include hidden parts. A ring's polygon is
        its outer circle.
    """
    rng = np.random.default_rng((seed, index))
    image = _background(rng, size)
    _strokes(rng, image, rng.integers(0, 4))
    image = image.astype(np.float32)

    masks: list[np.ndarray] = []
    annotations = []
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        category = int(rng.integers(len(CLASSES)))
        outline = place(rng, CLASSES[category], size)
        mask = draw_mask(CLASSES[category], outline, size)
        if not _leaves_visible([*masks, mask]):
            continue
        masks.append(mask)
        _paint(rng, image, mask)
        annotations.append(_annotation(category + 1, outline))

    return _photograph(rng, image), annotations


# ---- shapes --------------------------------------------------------------------------------------


@functools.cache
def _unit_outline(name: str) -> np.ndarray:
    """Return a class's outline, (points, 2), around the origin. Only its form matters, not its
    size."""
    if name in ("circle", "ring"):
        return _polar(np.ones(32))
    if name == "square":
        return _polar(np.ones(4))
    if name == "triangle":
        return _polar(np.ones(3))
    if name == "star":
        return _polar(np.tile([1.0, 0.45], 5))
    arm = 0.32  # cross: half the width of an arm of length 1
    corner = np.array([[1, -arm], [1, arm], [arm, arm]])
    quarter_turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([corner @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])


def _polar(radii: np.ndarray) -> np.ndarray:
    angles = np.arange(len(radii)) * (2 * np.pi / len(radii))
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def place(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Return a rotated outline in pixels, (points, 2), inside the image. Its longer side is 8/96 to
    48/96 of ``size``."""
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outline = _unit_outline(name) @ rotation
    outline -= outline.min(axis=0)
    # Uniform in the logarithm: as many shapes of 8 to 16 pixels as of 16 to 32.
    extent = size / 96 * math.exp(rng.uniform(math.log(8), math.log(48)))
    outline *= extent / outline.max()
    outline += rng.uniform(0, size - outline.max(axis=0))
    # Rounded here, before all uses, so that image, polygon and box agree to the last digit.
    return np.clip(outline.round(2), 0, size)


def draw_mask(name: str, outline: np.ndarray, size: int) -> np.ndarray:
    """Return the share of each pixel that a shape covers, (size, size) float32 in 0..1. A ring has
    its hole here."""
    fraction_bits = 4
    canvas = np.zeros((size * _SUPERSAMPLING,) * 2, np.uint8)

    def fill(points: np.ndarray, value: int) -> None:
        # OpenCV's integer coordinates are pixel centres, COCO's are pixel corners: subtract half.
        fixed_point = (points * _SUPERSAMPLING - 0.5) * (1 << fraction_bits)
        vertices = fixed_point.round().astype(np.int32)
        cv2.fillPoly(canvas, [vertices], value, shift=fraction_bits)

    fill(outline, 255)
    if name == "ring":
        centre = outline.mean(axis=0)
        fill(centre + 0.55 * (outline - centre), 0)
    covered = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return covered.astype(np.float32) / 255


def _leaves_visible(masks: list[np.ndarray]) -> bool:
    """Return whether enough of each mask stays visible. Later masks lie on top of earlier
    masks."""
    uncovered = np.ones_like(masks[0])
    for mask in reversed(masks):
        if (mask * uncovered).sum() < MIN_VISIBLE * mask.sum():
            return False
        uncovered = uncovered * (1 - mask)
    return True


def _annotation(category_id: int, outline: np.ndarray) -> dict:
    x0, y0 = outline.min(axis=0)
    x1, y1 = outline.max(axis=0)
    return {
        "category_id": category_id,
        "segmentation": [outline.ravel().tolist()],
        "bbox": [round(float(v), 2) for v in (x0, y0, x1 - x0, y1 - y0)],
        "area": round(float(cv2.contourArea(outline.astype(np.float32))), 2),
        "iscrowd": 0,
    }


# ---- paint ---------------------------------------------------------------------------------------


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 256, (count, 3)).astype(np.float32)


def _wave(
    rng: np.random.Generator, shape: tuple[int, int], min_period: float, max_period: float
) -> np.ndarray:
    """A plane wave in a random direction, (height, width, 1) in -1..1. Periods are in pixels."""
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    frequency = 2 * np.pi / rng.uniform(min_period, max_period)
    y, x = np.ogrid[: shape[0], : shape[1]]
    along = frequency * np.cos(angle) * x + frequency * np.sin(angle) * y
    return np.sin(along + phase).astype(np.float32)[..., None]


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A gradient between two colours with cloudy noise, and stripes in half of the images; (size,
    size, 3) uint8."""
    first, second = _colours(rng, 2)
    blend = (_wave(rng, (size, size), 2 * size, 4 * size) + 1) / 2
    image = first * blend + second * (1 - blend)

    cells = int(rng.integers(3, 17))
    noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    clouds = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    image += rng.uniform(0.1, 0.5) * (clouds.astype(np.float32) - 127.5)

    if rng.random() < 0.5:
        image += rng.uniform(10, 50) * _wave(rng, (size, size), size / 16, size / 4)
    return np.clip(image, 0, 255).round().astype(np.uint8)


def _strokes(rng: np.random.Generator, image: np.ndarray, count: int) -> None:
    """Draw open curves that are not objects. Shapes differ from them by being filled or
    closed."""
    size = len(image)
    for colour in _colours(rng, count).tolist():
        thickness = int(rng.integers(1, 4))
        x0, y0, x1, y1 = rng.integers(0, size, 4).tolist()
        if rng.random() < 0.5:
            cv2.line(image, (x0, y0), (x1, y1), colour, thickness, cv2.LINE_AA)
        else:
            radius = int(rng.integers(size // 16, size // 4))
            start, sweep = int(rng.integers(0, 360)), int(rng.integers(60, 200))
            arc = cv2.ellipse2Poly((x0, y0), (radius, radius), 0, start, start + sweep, 10)
            cv2.polylines(image, [arc], False, colour, thickness, cv2.LINE_AA)


def _paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
    """Fill a shape with a slightly shaded colour, in place; ``image`` is float32."""
    inside = (mask > 0).astype(np.uint8)
    behind = cv2.mean(image, inside)[:3]
    candidates = _colours(rng, 8)
    # The shape must be visible: take the first colour that stands out from the background,
    # otherwise the colour with the highest contrast.
    contrast = np.abs(candidates - behind).max(axis=1)
    colour = candidates[np.argmax(np.minimum(contrast, 50))]

    x, y, width, height = cv2.boundingRect(inside)
    crop = np.s_[y : y + height, x : x + width]
    paint = colour + rng.uniform(0, 25) * _wave(rng, (height, width), 16, 96)
    image[crop] += mask[crop][..., None] * (paint - image[crop])


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Blur a float32 image as a lens does, then add a sensor's noise; returns uint8."""
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0))
    image += rng.uniform(2, 14) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 255).round().astype(np.uint8)
