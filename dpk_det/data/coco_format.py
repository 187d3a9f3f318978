"""The fields that a file in COCO's JSON format must have; msgspec reads and validates them.

Fields that neither Detectron2 nor pycocotools read may hold anything.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from detectron2.utils.file_io import PathManager
from msgspec import UNSET, Meta, Struct, UnsetType

from dpk_det.errors import UserError

Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Pixels = Annotated[int, Meta(ge=1, le=10**6)]
Text = Annotated[str, Meta(min_length=1)]


class Image(Struct, gc=False):
    """An image."""

    id: Integer | str
    file_name: Text
    height: Pixels
    width: Pixels


class RunLengths(Struct, gc=False):
    """A mask as run-length code."""

    size: tuple[Pixels, Pixels]
    counts: list[Positive] | str


class Annotation(Struct, gc=False):
    """An object."""

    id: Positive
    image_id: Integer | str
    category_id: Positive
    bbox: tuple[float, float, float, float]
    area: Annotated[float, Meta(ge=0)] | None = None
    iscrowd: Literal[0, 1] | bool | UnsetType = UNSET
    segmentation: list[list[float]] | RunLengths | None = None
    keypoints: list[float] | None = None
    num_keypoints: Positive | None = None
    ignore: Any = 0


class Category(Struct, gc=False):
    """A class."""

    id: Positive
    name: Text


class Categories(Struct):
    """A file of which only the classes are read."""

    categories: list[Category]


class Coco(Categories):
    """A file. Without a list of annotations it can only be used for prediction."""

    images: list[Image]
    annotations: list[Annotation] | UnsetType = UNSET


Content = TypeVar("Content", bound=Categories)


def read_coco(json_file: str, content: type[Content] = Coco) -> Content:
    """Read a file.

    Args:
        json_file: path or address.
        content: type to read: :class:`Coco`, or a type with fewer fields.

    Raises:
        UserError: if the file is absent, is not JSON or lists no categories, or if a field is
            absent or has a wrong value. The message then names entry and field.
    """
    try:
        with PathManager.open(json_file, "rb") as file:
            data = file.read()
    except OSError as e:
        raise UserError(
            f"Cannot read the annotation file {json_file} ({e.strerror or e}): correct "
            "DETECTRON2_DATASETS, or the path in DATASETS.JSON."
        ) from e
    try:
        found = msgspec.json.decode(data, type=content)
    except msgspec.ValidationError as e:
        raise UserError(f"{json_file}{_explain(data, str(e))}") from e
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UserError(f"{json_file} is no JSON in UTF-8 ({_locate(data, e)}).") from e
    if not found.categories:
        raise UserError(f"{json_file} lists no categories: name the classes under 'categories'.")
    return found


# ------------------------------------------------------------------ errors

_NUMBER = "a whole number of 0 or more"
_IMAGE_ID = "a whole number or a text, the same for image and annotation"
_MASK = (
    "a list of polygons, each [x, y, x, y, ...], or a run-length code with 'size' [height, width] "
    "and 'counts'"
)
_WANTED = {
    ("images", "id"): _IMAGE_ID,
    ("images", "file_name"): "the path of the image below the image folder",
    ("images", "height"): "a whole number of pixels",
    ("images", "width"): "a whole number of pixels",
    ("annotations", "id"): _NUMBER,
    ("annotations", "image_id"): _IMAGE_ID,
    ("annotations", "category_id"): "the id of one of 'categories'",
    ("annotations", "bbox"): "four numbers, [x, y, width, height] in pixels",
    ("annotations", "area"): "a number of square pixels, 0 or more",
    ("annotations", "iscrowd"): "0 or 1",
    ("annotations", "segmentation"): _MASK,
    ("annotations", "keypoints"): "a list of numbers, [x, y, visibility, ...]",
    ("annotations", "num_keypoints"): _NUMBER,
    ("categories", "id"): _NUMBER,
    ("categories", "name"): "the name of the class",
}
# fields of an entry that an error shows
TELLING = ("id", "image_id", "file_name", "name", "height", "width", "category_id", "bbox")


def describe(entry: dict[str, Any]) -> str:
    """Return the fields that identify an entry, as text."""
    return ", ".join(f"{k}: {entry[k]!r:.80}" for k in TELLING if k in entry)


def _explain(data: bytes, message: str) -> str:
    path = re.search(r"at `\$\.(\w+)\[(\d+)\](?:\.(\w+))?", message)
    if not path:
        return (
            f" is not in COCO's JSON format ({message.replace('`', '')}): give a file with "
            "images, annotations and categories, each a list."
        )
    name, index, field = path[1], int(path[2]), path[3]
    try:
        entry = msgspec.json.decode(_entry(data, name, index))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:  # in later entries
        return f" is no JSON in UTF-8 ({_locate(data, e)})."
    if not isinstance(entry, dict):
        return f": {name}[{index}] is {entry!r:.80}: give an entry with its fields."
    where = f": {name}[{index}], {{{describe(entry)}}},"
    if field is None:
        field = re.search("missing required field `(.*?)`", message)[1]
        return f"{where} has no {field!r}: add {_WANTED[name, field]}."
    value = msgspec.json.encode(entry[field]).decode()
    value = value if len(value) <= 80 else f"{value[:80]}..."
    return f"{where} has the {field} {value}: give {_WANTED[name, field]}."


def _entry(data: bytes, name: str, index: int) -> msgspec.Raw:
    lists = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    return msgspec.json.decode(lists[name], type=list[msgspec.Raw])[index]


def _locate(data: bytes, error: Exception) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        return "it begins with a byte order mark: save it without"
    if isinstance(error, RecursionError):
        return "its lists are nested too deeply: write what COCO's format has and no more"
    if isinstance(error, UnicodeDecodeError) or "utf-8" in str(error).lower():
        try:  # the error depends on the version of msgspec, and no version tells the place
            data.decode()
        except UnicodeDecodeError as e:
            near = data[max(e.start - 20, 0) : e.start + 20]
            return f"{e.reason} at byte {e.start}, near {near!r}: save it as UTF-8"
    place = re.search(r"\(byte (\d+)\)", str(error))
    if not place:
        return f"{str(error).lower()}: write it anew"
    at = int(place[1])
    near = " ".join(data[max(at - 40, 0) : at + 20].decode(errors="replace").split())
    # the place may be the sign, or the byte after it
    if re.match(rb"(?s).?-?(nan|inf)", data[max(at - 1, 0) : at + 12], re.IGNORECASE):
        return f"NaN or infinity at byte {at}, near {near!r}: write numbers, or leave the field out"
    return f"{error}, near {near!r}: write it anew"
