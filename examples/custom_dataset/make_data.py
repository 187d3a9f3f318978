#!/usr/bin/env python
"""Draw a small dataset in Pascal VOC's format: images of shapes in three classes.

python examples/custom_dataset/make_data.py output/custom/voc
"""

import argparse
from pathlib import Path
from xml.etree import ElementTree

import cv2

from dpk_det.data.shapes import CLASSES, draw_image

GROUPS = {  # each shape's class
    "circle": "round",
    "ring": "round",
    "square": "polygon",
    "triangle": "polygon",
    "star": "spiky",
    "cross": "spiky",
}
SIZE = 96


def annotation(file_name: str, objects: list[dict]) -> ElementTree.ElementTree:
    """Return the XML of an image. Corners count pixels from 1 and include the last pixel."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = file_name
    size = ElementTree.SubElement(root, "size")
    for name, value in (("width", SIZE), ("height", SIZE), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    for item in objects:
        name = GROUPS[CLASSES[item["category_id"] - 1]]
        x, y, width, height = item["bbox"]
        node = ElementTree.SubElement(root, "object")
        small = width * height < 100
        for key, value in (("name", name), ("truncated", 0), ("difficult", int(small))):
            ElementTree.SubElement(node, key).text = str(value)
        box = ElementTree.SubElement(node, "bndbox")
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
        for key, value in corners.items():
            ElementTree.SubElement(box, key).text = str(round(value))
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where Annotations, ImageSets and JPEGImages go")
    parser.add_argument("--train", type=int, default=600, help="images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=100, help="images (default: %(default)s)")
    args = parser.parse_args()
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (args.folder / name).mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("train", "val")):
        names = [f"{split}_{i:04d}" for i in range(getattr(args, split))]
        for i, name in enumerate(names):
            image, objects = draw_image(100 + seed, i, SIZE)
            cv2.imwrite(str(args.folder / "JPEGImages" / f"{name}.jpg"), image)
            annotation(f"{name}.jpg", objects).write(args.folder / "Annotations" / f"{name}.xml")
        (args.folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    print(f"Drew {args.train} + {args.val} images into {args.folder}.")


if __name__ == "__main__":
    main()
