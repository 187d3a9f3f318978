"""Convert YOLO's text files, which a ``data.yaml`` names, to the content of a COCO JSON file.

A line is ``class x y width height``: the number of the class, and the box's centre and size as
fractions of the image's width and height. A longer line, ``class x y x y ...``, is a polygon; its
bounding box is used. If the ``data.yaml`` has a ``kpt_shape``, a longer line is a box and its
keypoints, which are left out.
"""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpk_det.config.strict_yaml import read_yaml
from dpk_det.data.image_files import image_size
from dpk_det.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class Yolo(NamedTuple):
    """The content of a ``data.yaml``.

    Attributes:
        path: of the file.
        root: folder where its paths start.
        classes: names, in the order of their numbers.
        splits: name of a split ("train", "val" or "test") -> its paths.
        keypoints: numbers that a line has after its box; 0 if objects have no keypoints.
    """

    path: Path
    root: Path
    classes: list[str]
    splits: dict[str, list[str]]
    keypoints: int


def read_data_yaml(path: Path) -> Yolo:
    """Read a ``data.yaml``.

    Raises:
        UserError: if it cannot be read, names no classes or no training images, or has a malformed
            ``kpt_shape``.
    """
    content = read_yaml(path, "data.yaml")
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and [*names] == [*range(len(names))]:
        names = [*names.values()]
    if not isinstance(names, list) or not names or not all(isinstance(x, str) for x in names):
        raise UserError(
            f"{path} has no list of classes under 'names': write 'names: [cat, dog]', or numbers "
            "from 0 with a name each."
        )
    splits = {}
    for split in ("train", "val", "test"):
        value = content.get(split)
        value = [value] if isinstance(value, str) else value
        if isinstance(value, list) and value and all(isinstance(x, str) for x in value):
            splits[split] = value
    if "train" not in splits:
        raise UserError(f"{path} names no images under 'train': write a folder or a list of files.")
    root = path.parent / os.path.expanduser(str(content.get("path") or ""))
    if not root.is_dir():  # older files use paths relative to the working directory
        root = Path(str(content.get("path")))
    # absolute, as other paths of the file may be
    return Yolo(path, root.absolute(), names, splits, _keypoints(path, content.get("kpt_shape")))


def _keypoints(path: Path, shape: Any) -> int:
    """Return how many numbers describe the keypoints of an object."""
    if shape is None:
        return 0
    if isinstance(shape, list) and len(shape) == 2:
        if all(type(x) is int and x > 0 for x in shape):
            return math.prod(shape)
    raise UserError(
        f"{path} has {shape!r} as kpt_shape: write the number of keypoints and of the values of "
        "each, such as [17, 3]."
    )


def yolo_to_coco(yolo: Yolo, split: str) -> tuple[dict[str, Any], Path]:
    """Convert one split.

    Returns:
        images, annotations and categories as in COCO's JSON (category ids count the classes from
        1), and the folder to which ``file_name`` is relative.

    Raises:
        UserError: if there are no images, an image cannot be read, or a line is malformed.
    """
    files = list(_images(yolo, split))
    if not files:
        raise UserError(f"{yolo.path} names no images under {split!r}: correct the paths there.")
    folder = Path(os.path.commonpath([file.parent for file in files]))
    images, annotations = [], []
    for image_id, file in enumerate(files, 1):
        width, height = image_size(str(file))
        name = str(file.relative_to(folder))
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for class_, box in _boxes(_labels(file), len(yolo.classes), yolo.keypoints):
            x, y, w, h = _within(box, width, height)
            if w > 0 and h > 0:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": class_ + 1,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
    categories = [{"id": i, "name": name} for i, name in enumerate(yolo.classes, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, folder


def _images(yolo: Yolo, split: str) -> Iterator[Path]:
    for name in yolo.splits[split]:
        path = yolo.root / name
        if not path.exists() and name.startswith("../"):  # one annotation service writes such paths
            path = yolo.root / name.removeprefix("../")
        if path.is_dir():
            yield from sorted(x for x in _files(path) if x.suffix.lower() in SUFFIXES)
        elif path.suffix == ".txt" and path.is_file():
            lines = _text(path).split("\n")
            yield from (yolo.root / line.strip() for line in lines if line.strip())
        else:
            raise UserError(
                f"{yolo.path} names {name} under {split!r}, which is neither a folder nor a list "
                f"of files below {yolo.root}: correct it."
            )


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders. These may be links, as YOLO allows."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [x for x in folders if not _leads_back(Path(parent, x))]
        yield from (Path(parent, x) for x in names)


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one above it; the walk would go round in circles."""
    return folder.is_symlink() and any(folder.samefile(x) for x in folder.parents)


def _labels(image: Path) -> Path:
    """Return an image's text file: ``labels/a/b.txt`` for ``images/a/b.jpg``, or one beside it."""
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            # the folder may be any of that name, far above the data
            return file if (file := Path(*parts)).is_file() else beside
    return beside


def _boxes(file: Path, num_classes: int, keypoints: int) -> Iterator[tuple[int, Sequence[float]]]:
    """Yield each line's class and corners x0, y0, x1, y1, as fractions of the image."""
    if not file.is_file():  # an image without an object
        return
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            class_, *values = (float(x) for x in line.split())
        except ValueError:
            class_, values = -1, []
        polygon = not keypoints and len(values) >= 6 and len(values) % 2 == 0
        complete = len(values) in (4, 4 + keypoints) or polygon
        if class_ not in range(num_classes) or not complete or not all(map(math.isfinite, values)):
            longer = (
                f"these and the {keypoints} values that kpt_shape asks for"
                if keypoints
                else "the points of a polygon"
            )
            raise UserError(
                f"{file}, line {number}, is {line[:80]!r}: write a class from 0 to "
                f"{num_classes - 1}, then x, y, width and height, or {longer}."
            )
        if polygon:
            xs, ys = values[::2], values[1::2]
            yield int(class_), (min(xs), min(ys), max(xs), max(ys))
        else:
            x, y, w, h = values[:4]
            yield int(class_), (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def _text(file: Path) -> str:
    """Return a file's text. Bytes that are not UTF-8 become a sign that no number or path has."""
    return file.read_text("utf-8", errors="replace")


def _within(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in box)
    return x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height
