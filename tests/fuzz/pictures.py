"""Images that are odd: as bytes, by name, with what a detector should make of them."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from cases import damages
from PIL import Image

SIZE = (64, 64)


class Picture(NamedTuple):
    """An image file.

    Attributes:
        name: what it is. suffix: of its file. data: its bytes. size: (width, height) as it is
            looked at, None: there is nothing to look at. trains: whether it can be trained with.
    """

    name: str
    suffix: str
    data: bytes
    size: tuple[int, int] | None = SIZE
    trains: bool = True


def pictures() -> Iterator[Picture]:
    """Whole ones of all kinds, then what is no image, then damaged ones."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    grey = image.convert("L")
    wide = np.asarray(grey).astype(np.uint16) * 257
    for mode in ("L", "1", "P", "LA", "RGBA", "RGB"):
        yield Picture(f"PNG {mode}", ".png", _encode(image.convert(mode), "PNG"))
    for mode in ("L", "CMYK", "RGB"):
        yield Picture(f"JPEG {mode}", ".jpg", _encode(image.convert(mode), "JPEG"))
    yield Picture("JPEG, progressive", ".jpg", _encode(image, "JPEG", progressive=True))
    yield Picture("JPEG named .png", ".png", _encode(image, "JPEG"))
    yield Picture("GIF named .jpg", ".jpg", _encode(image, "GIF"))
    for form in ("BMP", "WEBP", "TIFF"):
        yield Picture(form, f".{form.lower()}", _encode(image, form))
    yield Picture("suffix in capitals", ".PNG", _encode(image, "PNG"))
    for mode in ("RGBA", "CMYK", "LAB", "P"):
        converted = image.convert(mode) if mode != "LAB" else Image.new("LAB", SIZE)
        yield Picture(f"TIFF {mode}", ".tif", _encode(converted, "TIFF"))
    yield Picture("two pages", ".tif", _encode(image, "TIFF", save_all=True, append_images=[image]))
    yield Picture("animated", ".webp", _encode(image, "WEBP", save_all=True, append_images=[grey]))
    for form in ("PNG", "TIFF"):
        data = _encode(Image.fromarray(wide), form)
        yield Picture(f"{form} of 16 bits", f".{form.lower()}", data, trains=False)
    for name, values in (
        ("0 to 1", np.asarray(grey) / 255),
        ("0 to 255", np.asarray(grey) * 1.0),
        ("negative", np.asarray(grey) - 1000.0),
        ("NaN", np.full(SIZE, np.nan)),
        ("infinite", np.full(SIZE, np.inf)),
    ):
        data = _encode(Image.fromarray(values.astype(np.float32)), "TIFF")
        yield Picture(f"TIFF of floats, {name}", ".tif", data, trains=False)
    data = _encode(Image.fromarray(wide.astype(np.int32) * 1000), "TIFF")
    yield Picture("TIFF of 32 bits", ".tif", data, trains=False)
    for orientation in (0, 3, 6, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = _encode(image.crop((0, 0, 64, 32)), "JPEG", exif=exif)
        size = (32, 64) if orientation == 6 else (64, 32)
        yield Picture(f"EXIF orientation {orientation}", ".jpg", data, size)
    data = _encode(image, "JPEG", exif=b"Exif\0\0" + b"\xff" * 30)
    yield Picture("EXIF that is none", ".jpg", data)
    yield Picture("one pixel", ".png", _encode(image.crop((0, 0, 1, 1)), "PNG"), (1, 1))
    for size in ((1, 20000), (20000, 1)):
        data = _encode(Image.new("RGB", size), "PNG")
        yield Picture(f"{size[0]} x {size[1]}", ".png", data, None, trains=False)
    for name, odd in (
        ("empty", b""),
        ("a text", b"no image at all\n"),
        ("NUL", bytes(1000)),
        ("a PNG's first bytes", b"\x89PNG\r\n\x1a\n"),
        ("a JPEG's first bytes", b"\xff\xd8\xff\xe0"),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"),
        ("PDF", b"%PDF-1.4\n%%EOF\n"),
        ("without pixels", _png(64, 64, b"")),
        ("of no width", _png(0, 64, b"")),
        ("a bomb", _png(60_000, 60_000, zlib.compress(bytes(10**6)))),
        ("of too many pixels for any size", _png(2**31 - 1, 2**31 - 1, b"")),
    ):
        yield Picture(name, ".jpg" if name.startswith("a ") else ".png", odd, None, trains=False)


def damaged_pictures(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Names, suffixes and bytes of images of which some part is not as it was."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    for number, form in enumerate(("PNG", "JPEG", "TIFF", "WEBP", "BMP")):
        for name, data in damages(_encode(image, form), count, seed + number):
            yield f"{form} {name}", f".{form.lower()}", data


def _encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
