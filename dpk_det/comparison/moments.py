"""Snapshots of DPK at a few steps of a training, as images."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpk_det.comparison.pictures import as_uri
from dpk_det.engine.snapshots import FOLDER

_DIM = 0.25  # brightness without the prior


@dataclass(frozen=True)
class Moment:
    """A snapshot of one step on one image, at the finest level.

    Attributes:
        step: counted from 1.
        level: name of the level.
        ratio: prior ratio.
        added: the transformer's relative change of the student's map; None if unknown.
        pictures: title to image as data URI.
    """

    step: int
    level: str
    ratio: float
    added: float | None
    pictures: dict[str, str]


def read_moments(folder: Path) -> list[Moment]:
    """Return the readable snapshots of a training, in the order of its steps."""
    moments = []
    for path in (folder / FOLDER).glob("*.npz"):
        try:
            content = dict(np.load(path))
            moments.append(_moment(int(path.stem), content))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            continue  # damaged, or not a snapshot of DPK
    return sorted(moments, key=lambda moment: moment.step)


def _moment(step: int, content: Mapping[str, np.ndarray]) -> Moment:
    # Without DPK there is no level, and the next look-up raises KeyError.
    level = next((name for name in content if name.endswith("/given")), "").removesuffix("/given")
    image, given = content["image"], content[f"{level}/given"]
    shown = image * where_given(given, float(content[f"{level}/token"]), image.shape[:2])
    maps = {
        f"the {what} map": content[f"{level}/{name}"]
        for what, name in (
            ("student's", "student"),
            ("completed", "completed"),
            ("teacher's", "teacher"),
        )
    }
    return Moment(
        step,
        level,
        float(content[f"{level}/ratio"]),
        float(content[f"{level}/added"]) if f"{level}/added" in content else None,
        {
            "where the prior is given": as_uri(shown.astype(np.uint8), ".jpg"),
            **{title: as_uri(np.ascontiguousarray(x), ".png") for title, x in maps.items()},
        },
    )


def where_given(given: np.ndarray, token: float, size: tuple[int, int]) -> np.ndarray:
    """Return the brightness of an image that shows which tokens took the prior.

    Args:
        given: (h, w) bool.
        token: side of a token in pixels.
        size: (H, W) of the image.

    Returns:
        (H, W, 1), 1 where the prior was given, less elsewhere.
    """
    rows, columns = (
        np.minimum((np.arange(side) / token).astype(int), tokens - 1)
        for side, tokens in zip(size, given.shape, strict=True)
    )
    return np.where(given[rows][:, columns], 1.0, _DIM)[..., None]
