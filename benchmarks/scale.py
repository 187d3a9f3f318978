#!/usr/bin/env python
"""Computes what distillation costs on many GPUs from what a step costs on one machine.

    python benchmarks/step.py --preset frcnn --batch 1 2 --repeats 1 --warmup 0 --methods dpk \
        --json step.json
    python benchmarks/scale.py step.json

The first command measures a step's floating point operations, trained numbers and peak memory, for
one and for two images; the difference is what an image adds. Options give the assumptions: the
card's speed, the share of it that a training reaches, and how fast GPUs exchange gradients. All
printed figures are computed. They assume that GPUs exchange gradients by rings over all links,
after the backward pass. Detectron2 exchanges a part during that pass, so true steps are faster.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

VARIANTS = ("plain", "floor", "dpk")
COCO = 118_000  # images of its training set
BYTES = 4  # per gradient, in float32


def at(runs: Mapping[int, Mapping[str, Any]], variant: str, figure: str, images: int) -> float:
    """Return a figure of a step, on the line through the figures for one and two images."""
    one, two = (runs[n]["variants"][variant][figure] for n in (1, 2))
    return one + (images - 1) * (two - one)


def exchange_seconds(numbers: float, gpus: int, args: argparse.Namespace) -> float:
    """Return seconds of a ring: each GPU sends nearly twice all bytes over the slowest link."""
    if gpus == 1:
        return 0.0
    gigabytes = args.within if gpus <= args.node else min(args.within, args.between)
    return 2 * (gpus - 1) / gpus * BYTES * numbers / (1e9 * gigabytes)


def step_seconds(
    runs: Mapping[int, Mapping[str, Any]],
    variant: str,
    gpus: int,
    args: argparse.Namespace,
    teacher_speed: float = 1.0,
) -> tuple[float, float]:
    """Return a step's seconds of computing and of exchanging gradients.

    Args:
        teacher_speed: how many times faster the teacher computes than the rest.
    """
    work = at(runs, variant, "gflop", args.images)
    if variant != "plain":
        plain, floor = (at(runs, x, "gflop", args.images) for x in ("plain", "floor"))
        work += (floor - plain) * (1 / teacher_speed - 1)
    numbers = runs[1]["variants"][variant]["trained"]
    return work / (1e3 * args.tflops * args.share), exchange_seconds(numbers, gpus, args)


def tables(runs: Mapping[int, Mapping[str, Any]], args: argparse.Namespace) -> str:
    """Return three tables: a step's work and memory; times on many GPUs; a faster teacher."""
    work = [
        [
            variant,
            *(f"{at(runs, variant, 'gflop', n) / 1e3:.2f}" for n in (1, 2, 16)),
            f"{runs[1]['variants'][variant]['trained'] / 1e6:.1f}",
            *(f"{at(runs, variant, 'peak_mb', n) / 1024:.1f}" for n in (1, 2, 16)),
        ]
        for variant in VARIANTS
    ]
    heads = ["", *(f"TFLOP, {n} images" for n in (1, 2, 16)), "million trained"]
    heads += [f"GB, {n} images" for n in (1, 2, 16)]
    parts = [_table(work, heads)]
    rows = []
    for gpus in args.gpus:
        row = [gpus, gpus * args.images]
        for variant in VARIANTS:
            computing, exchanging = step_seconds(runs, variant, gpus, args)
            hours = args.epochs * COCO / (gpus * args.images) * (computing + exchanging) / 3600
            row += [f"{1e3 * computing:.0f} + {1e3 * exchanging:.0f}", f"{hours:.2f}"]
        rows.append(row)
    heads = ["GPUs", "images a step"]
    heads += [x for name in VARIANTS for x in (f"{name}, ms", "hours")]
    parts.append(_table(rows, heads))
    rows = []
    for speed in (1, 2, 4):
        row = [f"{speed} times"]
        for variant in VARIANTS[1:]:
            seconds = step_seconds(runs, variant, 1, args, speed)[0]
            row.append(f"{seconds / step_seconds(runs, 'plain', 1, args)[0]:.2f}")
        rows.append(row)
    parts.append(_table(rows, ["teacher's speed", "floor, x plain", "dpk, x plain"]))
    return "\n\n".join(parts)


def _table(rows: list[list[Any]], heads: list[str]) -> str:
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def main(argv: list[str] | None = None) -> None:
    """Read what was measured, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("step", type=Path, help="what benchmarks/step.py has written by --json")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--images", type=int, default=2, help="of a GPU in a step")
    parser.add_argument("--epochs", type=float, default=12.0, help="of COCO's training set")
    parser.add_argument("--tflops", type=float, default=312.0, help="of a card; an A100 in bf16")
    parser.add_argument("--share", type=float, default=0.1, help="of that which a step reaches")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a machine")
    parser.add_argument("--within", type=float, default=200.0, help="GB/s between GPUs of one")
    parser.add_argument("--between", type=float, default=100.0, help="GB/s of a machine to others")
    args = parser.parse_args(argv)
    found = json.loads(args.step.read_bytes())["runs"]
    runs = {run["images"]: run for run in found}
    if not {1, 2} <= runs.keys():
        parser.error(f"{args.step} has no steps of 1 and 2 images: measure by --batch 1 2.")
    print(tables(runs, args))


if __name__ == "__main__":
    main()
