"""Pictures within a page."""

import base64

import cv2
import numpy as np


def as_uri(image: np.ndarray, suffix: str) -> str:
    """An image as a data URI.

    Args:
        image: (H, W, 3) BGR uint8. suffix: ".jpg" or ".png".
    """
    _, data = cv2.imencode(suffix, image, [cv2.IMWRITE_JPEG_QUALITY, 80])
    kind = {".jpg": "jpeg", ".png": "png"}[suffix]
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
