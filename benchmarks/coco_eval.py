#!/usr/bin/env python
"""What COCO's box AP costs on a CPU: pycocotools beside faster-coco-eval.

Makes up a set as large as COCO's validation set (5,000 images, 36,000 objects of 80 classes) and
100 detections an image, of which some lie upon objects, and evaluates them as Detectron2's
COCOEvaluator does. Prints a Markdown table of the seconds, of the 12 figures' largest difference,
and of that of the precisions, of which the figures are means.
"""

import argparse
import contextlib
import io
import random
import time
from typing import Any

import numpy as np
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

Dataset = dict[str, list[dict[str, Any]]]


def make_up(
    num_images: int, num_objects: int, detections: int
) -> tuple[Dataset, list[dict[str, Any]]]:
    """A dataset in COCO's format, and detections in COCO's format for results.

    Args:
        detections: of each image. Half are objects of it, moved by chance, else anything.
    """
    rng = random.Random(0)
    images = [{"id": i, "height": 480, "width": 640} for i in range(num_images)]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    objects = []
    of_image: dict[int, list[dict[str, Any]]] = {i: [] for i in range(num_images)}
    for i in range(num_objects):
        box = _box(rng)
        entry = {
            "id": i + 1,
            "image_id": rng.randrange(num_images),
            "category_id": rng.randint(1, 80),
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(rng.random() < 0.01),
        }
        objects.append(entry)
        of_image[entry["image_id"]].append(entry)
    found = []
    for image, there in of_image.items():
        for _ in range(detections):
            near = rng.choice(there) if there and rng.random() < 0.5 else None
            box = [x + rng.gauss(0, 5) for x in near["bbox"]] if near else _box(rng)
            found.append(
                {
                    "image_id": image,
                    "category_id": near["category_id"] if near else rng.randint(1, 80),
                    "bbox": [*box[:2], max(box[2], 1), max(box[3], 1)],
                    "score": rng.random(),
                }
            )
    return {"images": images, "annotations": objects, "categories": categories}, found


def _box(rng: random.Random) -> list[float]:
    width, height = (rng.choice((12, 40, 160)) * (0.5 + rng.random()) for _ in range(2))
    return [(640 - width) * rng.random(), (480 - height) * rng.random(), width, height]


def evaluate(kind: type, truth: COCO, found: COCO) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds, the 12 figures, and the precisions by threshold, recall, class, area and number."""
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
    args = parser.parse_args(argv)
    dataset, results = make_up(args.images, args.objects, args.detections)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        found = truth.loadRes(results)
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
