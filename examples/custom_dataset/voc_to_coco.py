#!/usr/bin/env python
"""Turn a folder of Pascal VOC's XML files into one JSON file in COCO's format.

python voc_to_coco.py VOC/Annotations train.json --classes cat dog --split VOC/train.txt

It needs nothing but Python. Corners in VOC count pixels from 1, the last one included; boxes in
COCO are x, y, width, height from the image's outer corner, so x = xmin - 1 and width = xmax - x.
An object that is marked difficult becomes a crowd (iscrowd: 1): training leaves it out and the
evaluation neither wants nor punishes it, as VOC's own does; --keep-difficult makes it an object
like any other. Truncated and occluded objects are objects like any other.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


class BadFile(Exception):
    """What is wrong in which file."""


def convert(files: Sequence[Path], classes: Sequence[str], keep_difficult: bool) -> dict[str, Any]:
    """The content of a COCO JSON file; category ids count the classes from 1 in their order.

    Raises:
        BadFile: for a file that is not there or no XML, lacks something, or has another class, a
            size of 0 or an empty box.
    """
    ids = {name: i for i, name in enumerate(classes, 1)}
    images, annotations = [], []
    for file in files:
        try:
            root = ElementTree.parse(file).getroot()
        except (OSError, ElementTree.ParseError) as e:
            raise BadFile(f"{file} cannot be read ({e}): correct it or leave it out.") from e
        width, height = (int(number(file, root, f"size/{key}")) for key in ("width", "height"))
        if min(width, height) <= 0:
            raise BadFile(f"{file} gives a size of {width} x {height}: write the image's.")
        name = Path(text(file, root, "filename").replace("\\", "/")).name
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for item in root.iter("object"):
            label = text(file, item, "name")
            if label not in ids:
                raise BadFile(f"{file} has the class {label!r}: add it to --classes.")
            corners = (number(file, item, f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax"))
            x0, y0, x1, y1 = corners
            x0, y0, x1, y1 = max(x0 - 1, 0), max(y0 - 1, 0), min(x1, width), min(y1, height)
            if x0 >= x1 or y0 >= y1:
                raise BadFile(f"{file} has a box of a {label} that is empty: correct it.")
            difficult = (item.findtext("difficult") or "0").strip() not in ("0", "false")
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(difficult and not keep_difficult),
                }
            )
    categories = [{"id": i, "name": name} for name, i in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def text(file: Path, node: ElementTree.Element, path: str) -> str:
    """What stands at a path below a node."""
    found = (node.findtext(path) or "").strip()
    if not found:
        raise BadFile(f"{file} has no {path} in its {node.tag}: add it.")
    return found


def number(file: Path, node: ElementTree.Element, path: str) -> float:
    """The same as a number."""
    found = text(file, node, path)
    try:
        return float(found)
    except ValueError as e:
        raise BadFile(f"{file} has {found!r} as {path}: write a number.") from e


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, help="folder of XML files")
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--classes", nargs="+", required=True, help="in the order they are to have")
    parser.add_argument("--split", type=Path, help="text file: one name of an XML file a line")
    parser.add_argument("--keep-difficult", action="store_true", help="as objects like any other")
    args = parser.parse_args()
    try:
        if args.split:
            # a third-party list may have a second column, as VOC's lists of one class do
            lines = args.split.read_text().splitlines()
            files = [args.annotations / f"{x.split()[0]}.xml" for x in lines if x.strip()]
        else:
            files = sorted(args.annotations.glob("*.xml"))
        if not files:
            raise BadFile(f"There are no XML files in {args.annotations}: name their folder.")
        content = convert(files, args.classes, args.keep_difficult)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(content))
    except (BadFile, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    print(
        f"Wrote {args.output}: {len(content['images'])} images, {len(content['annotations'])} "
        f"boxes, {sum(x['iscrowd'] for x in content['annotations'])} of them crowds."
    )


if __name__ == "__main__":
    main()
