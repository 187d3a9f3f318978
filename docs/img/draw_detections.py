#!/usr/bin/env python
"""Draw the picture of the README: one photo, with what the teacher and two students find on it.

    python tools/compare.py configs/compare/bccd_few.yaml --seeds 1 \
        --only plain plain-long dpk-inherit --output output/readme
    python docs/img/draw_detections.py configs/compare/bccd_few.yaml output/readme \
        plain dpk-inherit docs/img/detections.png

The photo is the one on which the second student's F1 exceeds the first one's by most.
"""

import argparse
import base64
import json
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from dpk_det.comparison.photos import compare_photos
from dpk_det.comparison.plan import plan
from dpk_det.comparison.suite import read_suite
from dpk_det.config.loading import load_config

COLOURS = {"right": "#4dabf7", "wrong": "#ff922b", "missed": "#ff8fc8", "object": "#ffffff"}


def main(argv: list[str] | None = None) -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suite", type=Path)
    parser.add_argument("output", type=Path, help="the comparison's folder")
    parser.add_argument("first", help="name of a method")
    parser.add_argument("second", help="name of the method that is better")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args(argv)
    summary = json.loads((args.output / "results.json").read_bytes())
    todo = plan(read_suite(args.suite), args.output / "runs", [int(x) for x in summary["seeds"]])
    seed = todo.seeds[0]
    teacher = summary["methods"][args.second]["teacher"]
    rows = summary["teachers"] | summary["methods"]
    names = [args.first, args.second, teacher]
    titles = {rows[name]["title"]: rows[name] for name in names}
    runs = {rows[name]["title"]: next(iter(todo.rows[name].values())) for name in names}
    one = todo.methods[args.second][seed]
    cfg = load_config(one.config, [*one.opts])
    pair = (rows[args.first]["title"], rows[args.second]["title"])
    photo = compare_photos(runs, pair, cfg, seed).won[0]
    data = base64.b64decode(photo.source.partition(",")[2])
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    figure, axes = plt.subplots(1, len(photo.views), figsize=(13, 3.6), dpi=110)
    scale = image.shape[1] / photo.width
    for panel, view in zip(axes, photo.views, strict=True):
        panel.imshow(image)
        panel.set_axis_off()
        for box in view.boxes:
            corner, size = ([scale * x for x in two] for two in (box.corner, box.size))
            style = "--" if box.kind == "missed" else "-"
            panel.add_patch(
                plt.Rectangle(corner, *size, fill=False, ec=COLOURS[box.kind], ls=style, lw=1.6)
            )
        row = titles.get(view.title)
        under = view.title
        if row:
            under += f"\n{row['parameters'] / 1e6:.2f} M parameters, AP {row['mean']:.1f}"
        panel.set_title(under, y=-0.24, fontsize=10)
    figure.tight_layout()
    figure.savefig(args.picture, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
