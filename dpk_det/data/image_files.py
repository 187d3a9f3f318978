"""Check image files before training or evaluation fails on one of them."""

import functools
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from typing import IO, Any, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from dpk_det.errors import UserError

_CHUNK = 64  # images that a thread takes at a time
_ORIENTATION = 0x0112  # tag of EXIF
_TURNED = (5, 6, 7, 8)  # orientations that swap width and height
_DEEP = ("I", "F")  # first letters of modes with over 8 bits; Detectron2 cuts these off at 255


class ImageFile(NamedTuple):
    """An image to check.

    Attributes:
        path: of the file, or within the archive.
        size: (width, height) in its annotations; None if these give no size.
        archive: path of a zip; "" if there is none.
    """

    path: str
    size: tuple[int, int] | None = None
    archive: str = ""

    def open(self) -> IO[bytes]:
        """Open the file for reading its bytes."""
        if not (self.archive or os.path.isfile(self.path)) and os.path.exists(self.path):
            raise OSError("it is no file")  # for example a pipe, which could block
        return (
            _zip(self.archive, os.getpid()).open(self.path)
            if self.archive
            else open(self.path, "rb")
        )

    def __str__(self) -> str:
        return f"{self.path} in {self.archive}" if self.archive else self.path


def image_of(record: Mapping[str, Any], key: str = "file_name") -> ImageFile:
    """Return the image that one of Detectron2's dicts names under ``key``."""
    known = "width" in record and "height" in record
    return ImageFile(record[key], (record["width"], record["height"]) if known else None)


def check_image_files(
    files: Sequence[ImageFile],
    what: str,
    decode: bool = False,
    fits: Callable[[int, int], bool] = lambda width, height: True,
) -> None:
    """Open every image in threads, with a progress bar if that takes more than two seconds.

    Only the header of each image is read, unless ``decode`` is set.

    Args:
        files: the images.
        what: name of their dataset, for the progress bar and the error.
        decode: read each image whole, which finds truncated and damaged images.
        fits: tells whether the model can take an image of this (width, height).

    Raises:
        UserError: says how many images cannot be used, and what is wrong with the first: it is
            absent, not an image or too large, has more than 8 bits per channel, differs in size
            from its annotations (after EXIF rotation, as in Detectron2), or has a size that does
            not fit.
    """

    with warnings.catch_warnings(), ThreadPool(min(32, (os.cpu_count() or 1) + 4)) as pool:
        warnings.simplefilter("ignore")  # about EXIF, and large images that PIL still reads
        found = pool.imap(lambda file: find_problem(file, decode, fits), files, _CHUNK)
        bar = {"desc": f"Looking at {what}", "unit": "image", "delay": 2, "disable": None}
        problems = [problem for problem in tqdm(found, total=len(files), **bar) if problem]
    if problems:
        others = f"{len(problems)} of {len(files)} images of {what} cannot be used, first: "
        raise UserError((others if len(problems) > 1 else "") + problems[0])


def find_problem(
    file: ImageFile,
    decode: bool = True,
    fits: Callable[[int, int], bool] = lambda width, height: True,
) -> str:
    """Return what is wrong with an image, in one sentence; "" if nothing is wrong.

    Args:
        file: the image.
        decode: as for :func:`check_image_files`.
        fits: as for :func:`check_image_files`.
    """
    try:
        with file.open() as stream, Image.open(stream) as image:
            orientation, mode = _orientation(image), image.mode
            width, height = image.size
            if decode:
                image.convert("RGB")
    except FileNotFoundError:
        return f"{file} does not exist: correct file_name or the image folder."
    # PIL raises errors of many kinds, depending on the damage
    except Exception as e:
        reason = " ".join(str(e).split()) or repr(e)
        if isinstance(e, UnidentifiedImageError):
            reason = "of no known kind"
        return f"{file} cannot be read as an image ({reason}): replace it or take it out."
    if mode.startswith(_DEEP):
        return (
            f"{file} has more than 8 bits a channel (mode {mode}), which would be cut off at 255: "
            "convert it to 8 bits."
        )
    as_stored = width, height
    if orientation in _TURNED:
        width, height = height, width
    if file.size and (width, height) != file.size:
        sizes = (
            f"{width} x {height} pixels where its annotations say {'{} x {}'.format(*file.size)}"
        )
        if as_stored == file.size:
            return (
                f"{file} has {sizes}, because its EXIF orientation ({orientation}) turns it: take "
                "the orientation out of the file, or write size and boxes as they are turned."
            )
        return f"{file} has {sizes}: correct width and height, or the file."
    if not fits(width, height):
        return (
            f"{file} has {width} x {height} pixels, which cannot be resized for the model: take it "
            "out, or cut it into parts."
        )
    return ""


def image_size(path: str) -> tuple[int, int]:
    """Return an image's width and height in pixels after EXIF rotation, as Detectron2 reads it.

    Raises:
        UserError: if the file cannot be used as an image.
    """
    if problem := find_problem(ImageFile(path), decode=False):
        raise UserError(problem)
    with Image.open(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _TURNED else (width, height)


def as_seen(image: Image.Image) -> Image.Image:
    """Return an opened image in RGB, after EXIF rotation. Damaged EXIF is ignored."""
    seen = image.convert("RGB")
    orientation = _orientation(image)
    seen.info.clear()  # PIL would copy other EXIF tags, and fail if these are damaged
    seen.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(seen)


def _orientation(image: Image.Image) -> int | None:
    # EXIF may stand at the end of a PNG, but PIL would decode the whole image to find it there
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return None
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # Detectron2 then does not rotate the image
        return None


@functools.lru_cache(maxsize=8)
def _zip(path: str, process: int) -> zipfile.ZipFile:
    # Threads may share the zip. Forked processes would share the position in the file and read each
    # other's bytes, so the cache has one zip per process.
    return zipfile.ZipFile(path)
