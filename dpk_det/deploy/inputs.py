"""Finds images and videos, and reads them as they look."""

import glob
import logging
import os
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image, ImageOps
from tqdm import tqdm

from dpk_det.errors import UserError

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")

# modes with one channel of more than 8 bits, which Pillow would cut off at 255
_DEEP = ("F", "I", "I;16", "I;16B", "I;16L")


class FileError(Exception):
    """One file cannot be read, drawn or given to the model; the others are still processed."""


def find_inputs(inputs: Iterable[str]) -> list[Path]:
    """Return the images and videos that names of files, folders and globs stand for, each once.

    A folder stands for the files directly in it, sorted. ``"folder/**"`` also finds those in
    subfolders.

    Returns:
        Absolute paths.

    Raises:
        UserError: if one of the names stands for no image or video.
    """
    files: dict[Path, None] = {}
    for given in inputs:
        try:
            candidates = _candidates(given)
            usable = [
                Path(os.path.abspath(x))
                for x in candidates
                if x.suffix.lower() in IMAGES + VIDEOS and x.is_file()
            ]
        except (OSError, ValueError, RuntimeError) as e:  # no access, no home of that user, ...
            reason = getattr(e, "strerror", None) or e
            raise UserError(
                f"The input {reprlib.repr(given)} cannot be looked at ({reason}): correct it."
            ) from e
        if not usable:
            raise UserError(
                f"The input {given} is no image, video, folder or glob of such: give files that "
                f"end in {', '.join(IMAGES + VIDEOS)}."
            )
        files |= dict.fromkeys(usable)
    return list(files)


def _candidates(given: str) -> list[Path]:
    if not given:  # an empty shell variable, which would stand for the working directory
        return []
    path = Path(given).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(path.iterdir())
    return sorted(map(Path, glob.glob(str(path), recursive=True)))


def is_video(file: Path) -> bool:
    """Whether the suffix is that of a video."""
    return file.suffix.lower() in VIDEOS


def frames(file: Path) -> Iterator[np.ndarray]:
    """Yield the image, or the frames of the video, each (H, W, 3) BGR with 8 bits.

    Raises:
        FileError: if there is nothing to read.
    """
    return _frames(file) if is_video(file) else iter([read(file)])


def read(file: Path) -> np.ndarray:
    """Read an image as it looks: (H, W, 3) BGR with 8 bits, rotated as its EXIF tag says.

    :func:`scale_to_8_bits` scales grey images of more bits. All others are read as Detectron2 reads
    them for a training. Transparency is ignored; only the colours count.

    Raises:
        FileError: if it cannot be read.
    """
    try:
        with Image.open(file) as image:
            if image.mode not in _DEEP:
                return read_image(str(file), "BGR")
            wide = image.mode.startswith("I;16")
            grey = np.asarray(ImageOps.exif_transpose(image))
        return np.stack([scale_to_8_bits(grey.astype(np.uint16) if wide else grey)] * 3, axis=2)
    except Exception as e:  # a damaged file makes Pillow's readers fail in every way
        raise FileError(f"no readable image: {e or repr(e)}") from e


def scale_to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale an image's values to 0 to 255.

    Values of type uint16 are divided by 257. For wider types the first range that holds all values
    counts: 0 to 1, then 0 to 255 for floats; 0 to 255, then 0 to 65535 for integers. If none does,
    the greatest value is white, and black is 0 or the least value, if that is negative. NaN is
    black.
    """
    if values.dtype == np.uint16:
        low, high = 0.0, 65535.0
    else:
        limits = (255.0, 65535.0) if np.issubdtype(values.dtype, np.integer) else (1.0, 255.0)
        values = values.astype(np.float64)
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
        if low >= 0:
            low, high = 0.0, next((limit for limit in limits if high <= limit), high)
    share = (values - low) / ((high - low) or 1.0)
    share = np.nan_to_num(share, nan=0.0, posinf=1.0, neginf=0.0)
    return np.round(255 * share.clip(0, 1)).astype(np.uint8)


def frames_per_second(file: Path) -> float:
    """Return the frame rate that a video states; 25 if it states none or no plausible one."""
    fps = cv2.VideoCapture(str(file)).get(cv2.CAP_PROP_FPS)
    return fps if 0 < fps <= 1000 else 25.0


def _frames(file: Path) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(str(file))
    count = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)  # an estimate, negative if unknown
    with tqdm(total=count or None, desc=file.name, unit="frame", leave=False) as progress:
        while True:
            there, frame = capture.read()
            if not there:
                break
            yield frame
            progress.update()
    if not progress.n:
        raise FileError("no readable video")
    if progress.n < 0.9 * count:
        logging.getLogger(__name__).warning(
            "%s ends after %d of about %d frames", file, progress.n, count
        )
