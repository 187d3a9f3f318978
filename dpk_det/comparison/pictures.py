"""Images that are embedded in a page."""

import base64

import cv2
import numpy as np


def as_uri(image: np.ndarray, suffix: str) -> str:
    """Encode an image as a data URI.

    Args:
        image: (H, W, 3) BGR uint8.
        suffix: ".jpg" or ".png".
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, 80] if suffix == ".jpg" else []
    _, data = cv2.imencode(suffix, image, quality)
    return embedded(data.tobytes(), {".jpg": "jpeg", ".png": "png"}[suffix])


def embedded(data: bytes, kind: str) -> str:
    """Return the content of an image file as a data URI.

    Args:
        data: content of the file.
        kind: "png" or "jpeg".
    """
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
