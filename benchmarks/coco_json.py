#!/usr/bin/env python
"""Measures time and memory for reading and checking a file in COCO's JSON format.

It writes a file of N annotations with random polygons and reads it in three ways, each in its own
process: `json.load` alone; `pycocotools.COCO`, by which Detectron2 loads a dataset; this project's
checks (msgspec, then what no schema can express). It prints a Markdown table of the CPU seconds and
the peak memory of each.
"""

import argparse
import contextlib
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

READERS = ("json.load", "pycocotools.COCO", "dpk_det.data")


def write(path: Path, num_annotations: int) -> None:
    """Write a file with as many images and coordinates per annotation as COCO has."""
    rng = random.Random(0)
    num_images = max(num_annotations * 118 // 860, 1)
    images = (
        {"id": i, "file_name": f"{i:012}.jpg", "height": 480, "width": 640}
        for i in range(num_images)
    )
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    with path.open("w") as file:  # piece by piece: as one object it would take gigabytes
        file.write(f'{{"categories": {json.dumps(categories)}')
        for name, entries in (
            ("images", images),
            ("annotations", _annotations(rng, num_annotations, num_images)),
        ):
            file.write(f', "{name}": [')
            for i, entry in enumerate(entries):
                file.write(", " * (i > 0) + json.dumps(entry))
            file.write("]")
        file.write("}")


def _annotations(rng: random.Random, number: int, num_images: int) -> Iterator[dict]:
    for i in range(number):
        x, y, width, height = (round(1 + 199 * rng.random(), 2) for _ in range(4))
        yield {
            "id": i + 1,
            "image_id": rng.randrange(num_images),
            "category_id": rng.randrange(1, 81),
            "bbox": [x, y, width, height],
            "area": width * height,
            "iscrowd": 0,
            "segmentation": [[round(400 * rng.random(), 2) for _ in range(40)]],
        }


def read(path: str, reader: str) -> tuple[float, float]:
    """Read a file; return the CPU seconds and the peak memory in MB."""
    # imported first, so that the import is not timed
    from pycocotools.coco import COCO

    from dpk_det.data.annotations import Use, check_annotations
    from dpk_det.data.coco_format import read_coco

    start = time.process_time()
    if reader == "json.load":
        with open(path) as file:
            json.load(file)
    elif reader == "pycocotools.COCO":
        with contextlib.redirect_stdout(io.StringIO()):
            COCO(path)
    else:
        use = Use(trained=True, evaluated=True, masks=True)
        check_annotations(read_coco(path), path, use)
    seconds = time.process_time() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str] | None = None) -> None:
    """Measure all readers; with --read run one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=int, default=860_000, help="how many, as COCO has")
    parser.add_argument("--read", nargs=2, metavar=("FILE", "READER"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.read:
        print(*read(*args.read))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        write(path, args.annotations)
        rows = []
        for reader in READERS:
            command = [sys.executable, __file__, "--read", str(path), reader]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append([reader, *map(float, done.stdout.split())])
        size = path.stat().st_size / 1e6
    print(f"{args.annotations:,} annotations, {size:.0f} MB\n")
    headers = ["reader", "CPU seconds", "peak memory, MB"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=(None, ".1f", ".0f")))


if __name__ == "__main__":
    main()
