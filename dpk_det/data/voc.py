"""Convert Pascal VOC's XML files to the content of a COCO JSON file.

VOC's corners count pixels from 1 and include the last pixel. COCO's boxes are x, y, width, height
from the image's outer corner. So x = xmin - 1 and width = xmax - x.

The usual converters are not used here: globox 2.9 does not shift the corners, and neither globox
nor supervision 0.31 reads the mark "difficult".
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from dpk_det.errors import UserError


def voc_to_coco(
    files: Sequence[Path], classes: Sequence[str] = (), keep_difficult: bool = False
) -> dict[str, Any]:
    """Convert VOC's files; each file describes one image.

    Args:
        files: XML files.
        classes: category ids count these from 1, in this order. (): the files' classes, sorted.
        keep_difficult: treat objects marked difficult like all others. False: they become crowds
            (``iscrowd: 1``). Training leaves crowds out, and evaluation ignores whether they are
            found, as VOC's own evaluation does. Truncated and occluded objects are always kept.

    Returns:
        images, annotations and categories as in COCO's JSON.

    Raises:
        UserError: if a file cannot be read, lacks an entry, or has an unknown class, a size of 0 or
            an empty box.
    """
    trees = {file: _parse(file) for file in files}
    if not classes:
        classes = sorted({_text(f, x, "name") for f, t in trees.items() for x in t.iter("object")})
    ids = {name: i for i, name in enumerate(classes, 1)}
    images, annotations = [], []
    for image_id, (file, tree) in enumerate(trees.items(), 1):
        width, height = (int(_number(file, tree, f"size/{key}")) for key in ("width", "height"))
        if min(width, height) <= 0:
            raise UserError(f"{file} gives a size of {width} x {height}: write the image's.")
        name = Path(_text(file, tree, "filename").replace("\\", "/")).name
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for item in tree.iter("object"):
            label = _text(file, item, "name")
            if label not in ids:
                raise UserError(
                    f"{file} has the class {label!r}, which is none of {', '.join(ids)}: correct "
                    "it, or add it to the classes."
                )
            box = _box(file, item, width, height)
            mark = (item.findtext("difficult") or "0").strip().lower()
            difficult = mark not in ("0", "false")
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[label],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(difficult and not keep_difficult),
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
    }


def voc_files(annotations: Path, split: Path | None = None) -> list[Path]:
    """Return the XML files of a folder, sorted, or those that a text file names, one per line.

    Raises:
        UserError: if there are none, or the text file cannot be read.
    """
    if split is None:
        files = sorted(annotations.glob("*.xml"))
    else:
        try:
            lines: Iterable[str] = split.read_text("utf-8-sig").splitlines()
        except (OSError, ValueError) as e:
            raise UserError(f"The list {split} cannot be read ({e}): correct its path.") from e
        files = [_listed(annotations, x.strip()) for x in lines if x.strip()]
    if not files:
        raise UserError(f"There are no XML files in {annotations}: name the folder that has them.")
    return files


def _listed(annotations: Path, line: str) -> Path:
    """Return the XML file that a line names. Names may have spaces."""
    file = annotations / f"{line}.xml"
    name, *mark = line.rsplit(maxsplit=1)
    # VOC's lists of one class say in a second column whether an image has an object of it
    if mark in (["-1"], ["0"], ["1"]) and not os.path.isfile(file):
        return annotations / f"{name}.xml"
    return file


def _parse(file: Path) -> Element:
    try:
        return ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as e:
        raise UserError(f"{file} cannot be read ({e}): correct it or leave it out.") from e


def _box(file: Path, item: Element, width: int, height: int) -> list[float]:
    x0, y0, x1, y1 = (
        _number(file, item, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")
    )
    x0, y0, x1, y1 = max(x0 - 1, 0), max(y0 - 1, 0), min(x1, width), min(y1, height)
    if not (x0 < x1 and y0 < y1):
        name = item.findtext("name")
        raise UserError(f"{file} has a box of a {name} that is empty: correct it.")
    return [x0, y0, x1 - x0, y1 - y0]


def _text(file: Path, node: Element, path: str) -> str:
    found = (node.findtext(path) or "").strip()
    if not found:
        raise UserError(f"{file} has no {path} in its {node.tag}: add it.")
    return found


def _number(file: Path, node: Element, path: str) -> float:
    found = _text(file, node, path)
    try:
        return float(found)
    except ValueError as e:
        raise UserError(f"{file} has {found!r} as {path}: write a number.") from e
