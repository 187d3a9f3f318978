#!/usr/bin/env python
"""Measures the time of COCO's box AP on a CPU: pycocotools and faster-coco-eval.

Makes up a dataset as large as COCO's validation set (5,000 images, 36,000 objects of 80 classes),
or reads one, and makes up 100 detections per image. Half of the detections lie near objects. Both
packages evaluate them as Detectron2's COCOEvaluator does. The Markdown table has the seconds, and
the largest difference of the 12 figures and of the precisions, whose means the figures are.

    python benchmarks/coco_eval.py
    python benchmarks/coco_eval.py --annotations instances_val.json
"""

import argparse
import contextlib
import io
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

Dataset = dict[str, list[dict[str, Any]]]


def make_dataset(num_images: int, num_objects: int) -> Dataset:
    """Make up a dataset in COCO's format: 80 classes, boxes of three sizes, 1 in 100 a crowd."""
    rng = random.Random(0)
    images = [{"id": i, "height": 480, "width": 640} for i in range(num_images)]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    objects = []
    for i in range(num_objects):
        box = _box(rng, images[0])
        objects.append(
            {
                "id": i + 1,
                "image_id": rng.randrange(num_images),
                "category_id": rng.randint(1, 80),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(rng.random() < 0.01),
            }
        )
    return {"images": images, "annotations": objects, "categories": categories}


def make_detections(dataset: Dataset, number: int) -> list[dict[str, Any]]:
    """Make up detections of a dataset, in COCO's format for results.

    Args:
        dataset: in COCO's format.
        number: of detections per image. Half are objects of the image, moved by chance. The others
            lie anywhere.
    """
    rng = random.Random(1)
    classes = [x["id"] for x in dataset["categories"]]
    of_image: dict[int, list[dict[str, Any]]] = {x["id"]: [] for x in dataset["images"]}
    for entry in dataset["annotations"]:
        of_image[entry["image_id"]].append(entry)
    found = []
    for image in dataset["images"]:
        there = of_image[image["id"]]
        for _ in range(number):
            near = rng.choice(there) if there and rng.random() < 0.5 else None
            box = _box(rng, image)
            if near:
                box = [x + rng.gauss(0, 5) for x in near["bbox"]]
            found.append(
                {
                    "image_id": image["id"],
                    "category_id": near["category_id"] if near else rng.choice(classes),
                    "bbox": [*box[:2], max(box[2], 1), max(box[3], 1)],
                    "score": rng.random(),
                }
            )
    return found


def _box(rng: random.Random, image: dict[str, Any]) -> list[float]:
    width, height = (rng.choice((12, 40, 160)) * (0.5 + rng.random()) for _ in range(2))
    left = max(image["width"] - width, 0) * rng.random()
    return [left, max(image["height"] - height, 0) * rng.random(), width, height]


def evaluate(kind: type, truth: COCO, found: COCO) -> tuple[float, np.ndarray, np.ndarray]:
    """Return seconds, the 12 figures, and precisions by IoU, recall, class, area and number."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        one = kind(truth, found, "bbox")
        one.evaluate()
        one.accumulate()
        one.summarize()
    return time.perf_counter() - start, np.asarray(one.stats[:12]), one.eval["precision"]


def main(argv: list[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36000)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    parser.add_argument(
        "--annotations", type=Path, help="COCO JSON to take instead of made-up data"
    )
    args = parser.parse_args(argv)
    if args.annotations:
        dataset = json.loads(args.annotations.read_bytes())
    else:
        dataset = make_dataset(args.images, args.objects)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        found = truth.loadRes(make_detections(dataset, args.detections))
    rows, first = [], None
    for kind in (COCOeval, COCOeval_faster):
        seconds, figures, precisions = evaluate(kind, truth, found)
        first = first or (figures, precisions)
        apart = [np.abs(x - y).max() for x, y in zip(first, (figures, precisions), strict=True)]
        rows.append([kind.__name__, f"{seconds:.1f}", f"{100 * figures[0]:.3f}", *apart])
    heads = ["evaluation", "seconds", "AP", "figures differ by", "precisions differ by"]
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
