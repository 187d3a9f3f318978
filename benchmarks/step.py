#!/usr/bin/env python
r"""Measures a training step: plain, with a teacher that only runs, and with each method.

    python benchmarks/step.py                                  # the small detectors of the shapes
    python benchmarks/step.py --preset frcnn --batch 2 8 --precision fp32 fp16 bf16  # needs a GPU
    python benchmarks/step.py --config-file configs/dpk_mrcnn_r101_r50.yaml --size 400x600 \
        DISTILL.DPK.DIM 128
    python benchmarks/step.py --sweep tokens

The variants are `plain`, the student alone; `floor`, the student and its teacher's backbone without
gradients, which every method that learns from maps needs; and each method alone. A step is what
Detectron2's trainer does: forward, backward, SGD on student and distiller, and storing the losses.
In each round all variants take one step, in random order, from the same weights, on the same
made-up images, with the same random proposals. The learning rate is almost 0, so that they stay
alike. The ratio to the floor is the median of the rounds' ratios.

Memory is the most that tensors hold during a step: the variant's weights, buffers, momentum and
gradients, its teacher, and what the step allocates (measure.peak_bytes says how it is measured).
The weights of the other variants are in memory too, but do not count.
"""

import argparse
import gc
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from measure import Times, count_flops, count_syncs, interleave, operator_times, write_trace
from tabulate import tabulate
from torch import nn
from variants import PRECISIONS, Size, load_also, make_batch, make_steppers, read_config

from dpk_det.distill.dpk.tokens import token_grid
from dpk_det.engine.ends import exit_on_user_error
from dpk_det.engine.machine import describe_machine
from dpk_det.errors import UserError

# name: config, (height, width) of the images, images per step
PRESETS: dict[str, tuple[str, Size, int]] = {
    "shapes": ("configs/shapes/dpk.yaml", (96, 96), 8),
    "frcnn": ("configs/dpk_frcnn_r101_r18.yaml", (800, 1333), 2),
    "retinanet": ("configs/dpk_retinanet_r101_r50.yaml", (800, 1333), 2),
}


# keys of DISTILL.DPK that make a step cheaper: without and with the saving
DEARER: dict[str, Any] = {"GROUPED": False, "CKA_EVERY": 1, "ENCODER_DEPTH": 1}
CHEAPER: dict[str, Any] = {"GROUPED": True, "CKA_EVERY": 4, "ENCODER_DEPTH": 0}


def summarise(
    times: Mapping[str, Sequence[Times]],
    peaks: Mapping[str, int],
    flops: Mapping[str, int],
    trained: Mapping[str, int],
    num_images: int,
) -> dict[str, dict[str, Any]]:
    """Return each variant's figures: seconds with quartiles, ratios to plain and floor."""

    def spread(values: Sequence[float]) -> dict[str, float]:
        q1, middle, q3 = np.percentile(values, [25, 50, 75]).tolist()
        return {"median": middle, "q1": q1, "q3": q3}

    figures = {}
    for name, taken in times.items():
        wall = spread([x.wall for x in taken])
        figures[name] = {
            "seconds": wall,
            "cpu_seconds": spread([x.cpu for x in taken]),
            "images_a_second": num_images / wall["median"],
            "peak_mb": peaks[name] / 2**20,
            "gflop": flops[name] / 1e9,
            "trained": trained[name],
        }
        for other in ("plain", "floor"):
            rounds = list(zip(taken, times[other], strict=True))
            figures[name][f"to_{other}"] = spread([a.wall / b.wall for a, b in rounds])
            figures[name][f"cpu_to_{other}"] = median(a.cpu / b.cpu for a, b in rounds)
    return figures


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the figures as Markdown."""
    headers = [
        "variant", "ms a step", "quartiles", "x floor", "quartiles", "x floor, CPU time",
        "images a second", "GFLOP", "x floor", "peak MB",
    ]  # fmt: skip
    rows = []
    for name, x in figures.items():
        wall, ratio = x["seconds"], x["to_floor"]
        rows.append(
            [
                name,
                f"{1e3 * wall['median']:.1f}",
                f"{1e3 * wall['q1']:.1f} to {1e3 * wall['q3']:.1f}",
                f"{ratio['median']:.3f}",
                f"{ratio['q1']:.3f} to {ratio['q3']:.3f}",
                f"{x['cpu_to_floor']:.3f}",
                f"{x['images_a_second']:.1f}",
                f"{x['gflop']:.2f}",
                f"{x['gflop'] / figures['floor']['gflop']:.3f}",
                f"{x['peak_mb']:.0f}",
            ]
        )
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def sweep_table(quantity: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with one row per swept value."""
    quantity = {"tokens": "token stride"}.get(quantity, quantity)
    headers = [
        quantity,
        "tokens an image",
        "plain, ms",
        "floor, ms",
        "DPK, ms",
        "x floor",
        "GFLOP, x floor",
        "peak MB",
        "x floor",
    ]
    rows = []
    for run in runs:
        figures = run["variants"]
        dpk, floor = figures["dpk"], figures["floor"]
        ms = (f"{1e3 * figures[x]['seconds']['median']:.1f}" for x in ("plain", "floor", "dpk"))
        rows.append(
            [
                run["value"],
                run["tokens"],
                *ms,
                f"{dpk['to_floor']['median']:.3f}",
                f"{dpk['gflop'] / floor['gflop']:.3f}",
                f"{dpk['peak_mb']:.0f}",
                f"{dpk['peak_mb'] / floor['peak_mb']:.3f}",
            ]
        )
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def sync_table(syncs: Mapping[str, Mapping[str, int]]) -> str:
    """Return a table with one row per place in the code and one column per variant."""
    places = dict.fromkeys(place for counts in syncs.values() for place in counts)
    rows = [[place, *(counts.get(place, 0) for counts in syncs.values())] for place in places]
    rows.append(["in all", *(sum(counts.values()) for counts in syncs.values())])
    return tabulate(rows, ["where", *syncs], tablefmt="github")


def operator_table(operators: Mapping[str, Mapping[str, Sequence[float]]], rows: int = 20) -> str:
    """Return a table of the operators that cost most beyond the floor in DPK, and their sum."""
    dpk, floor = operators["dpk"], operators["floor"]
    nothing = (0.0, 0.0)
    more = {
        name: [x - y for x, y in zip(dpk.get(name, nothing), floor.get(name, nothing), strict=True)]
        for name in (*dpk, *(floor.keys() - dpk.keys()))
    }
    most = sorted(more, key=lambda name: -more[name][0])[:rows]
    cells = [[name, f"{1e3 * more[name][0]:.2f}", f"{more[name][1]:+.0f}"] for name in most]
    seconds, calls = (sum(x) for x in zip(*more.values(), strict=True))
    cells.append(["all", f"{1e3 * seconds:.2f}", f"{calls:+.0f}"])
    headers = ["operator", "ms a step beyond the floor", "calls"]
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True)


def count_tokens(model: nn.Module, size: Size) -> int:
    """Count DPK's tokens for an image of this size, over all levels."""
    return sum(
        math.prod(token_grid(*(math.ceil(x / level.stride) for x in size), completion.patch))
        for method in model.distiller.methods.values()
        for level, completion in zip(method.levels, method.completions.values(), strict=True)
    )


def sweep(
    quantity: str, cfg: CfgNode, batch: int, size: Size
) -> Iterator[tuple[str, CfgNode, int, Size]]:
    """Yield the settings of a sweep: the value as text, config, images, size of the images."""
    dpk = cfg.DISTILL.DPK
    for factor in {"area": (1, 2, 4, 8), "batch": (1, 2, 4, 8)}.get(quantity, ()):
        if quantity == "batch":
            yield str(factor), cfg, factor, size
        else:
            h, w = (16 * max(1, round(x * math.sqrt(factor / 4) / 16)) for x in size)
            yield f"{h} x {w}", cfg, batch, (h, w)
    strides = [2 * dpk.TOKEN_STRIDE // 2**i for i in range(4)]
    settings: dict[str, dict[str, dict[str, Any]]] = {
        "tokens": {str(x): {"TOKEN_STRIDE": x} for x in strides},
        "depth": {str(x): {"ENCODER_DEPTH": x, "DECODER_DEPTH": x} for x in (1, 2, 4, 8)},
        "form": {
            "none of these": DEARER,
            **{f"{key}: {value}": {**DEARER, key: value} for key, value in CHEAPER.items()},
            "all of these": CHEAPER,
        },
    }
    for name, keys in settings.get(quantity, {}).items():
        changed = cfg.clone()
        changed.DISTILL.DPK.update(keys)
        yield name, changed, batch, size


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, or ``argv`` if it is given."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="An option that takes several values goes before another option, not before KEY.",
        allow_abbrev=False,
    )
    parser.add_argument("--preset", choices=PRESETS, default="shapes", help="(default: shapes)")
    parser.add_argument("--config-file", help="any other config that distils")
    parser.add_argument("--methods", nargs="+", help="default: all that the student can learn by")
    parser.add_argument(
        "--batch", type=int, nargs="+", help="images a step; several: one after another"
    )
    parser.add_argument("--size", type=image_size, help="of the images, HEIGHTxWIDTH in pixels")
    parser.add_argument("--padded", action="store_true", help="make every second image narrower")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--repeats", type=int, default=20, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--warmup", type=int, default=3, help="rounds before (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--also", type=Path, metavar="FILE.py", help="measure variants(cfg) of this file too"
    )
    parser.add_argument(
        "--sweep",
        choices=["area", "batch", "tokens", "depth", "form"],
        help="plain, floor and DPK over a growing quantity, or DPK's cheaper forms",
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write a profiler trace of DPK's step"
    )
    parser.add_argument(
        "--syncs", action="store_true", help="count where plain, floor and DPK wait for the device"
    )
    parser.add_argument(
        "--operators", action="store_true", help="list what DPK spends beyond the floor, and where"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )
    args = parser.parse_args(argv)
    if args.sweep or args.trace or args.syncs or args.operators:
        args.methods = ["dpk"]
    return args


def image_size(text: str) -> Size:
    """Read "800x1333"."""
    height, _, width = text.partition("x")
    return int(height), int(width)


def measure(args: argparse.Namespace, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure what the command line asks for, and print it.

    Returns:
        The content of the ``--json`` file.

    Raises:
        UserError: if a config, method or precision is impossible.
    """
    path, size, num_images = PRESETS[args.preset]
    if args.config_file:
        path, size, num_images = args.config_file, None, None
    cfg = read_config(path, args.opts)
    size, batches = args.size or size, args.batch or [num_images or cfg.SOLVER.IMS_PER_BATCH]
    device = cfg.MODEL.DEVICE.partition(":")[0]
    if "fp16" in args.precision and device != "cuda":
        raise UserError("fp16 needs a GPU: choose fp32 or bf16 on this machine.")
    if args.sweep and size is None:
        raise UserError("A sweep starts from a size of the images: give one by --size.")
    # the machine's load tells how reliable the seconds are
    report = {
        "machine": describe_machine(device == "cuda"),
        "load": os.getloadavg()[0],
        "config": path,
    }
    report |= {"opts": args.opts, "repeats": args.repeats, "runs": []}
    say(f"{path} {' '.join(args.opts)}, {args.repeats} rounds; {_describe(report)}\n")
    for precision, images in itertools.product(args.precision, batches):
        settings = [("", cfg, images, size)]
        if args.sweep:
            settings = sweep(args.sweep, cfg, images, size)
        runs = [
            {"precision": precision, **measure_one(args, precision, *setting)}
            for setting in settings
        ]
        report["runs"] += runs
        where = f"{precision}, {_plural(images)} of {runs[0]['size']}"
        if args.sweep:
            say(f"{where} and on:\n\n{sweep_table(args.sweep, runs)}\n")
            continue
        say(f"{where}:\n\n{table(runs[0]['variants'])}\n")
        for name, reason in runs[0]["skipped"].items():
            say(f"not run: {name} ({reason})")
        if runs[0]["syncs"]:
            say(f"waits for the device in a step:\n\n{sync_table(runs[0]['syncs'])}\n")
        if runs[0]["operators"]:
            say(f"{operator_table(runs[0]['operators'])}\n")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def measure_one(
    args: argparse.Namespace,
    precision: str,
    value: str,
    cfg: CfgNode,
    images: int,
    size: Size | None,
) -> dict[str, Any]:
    """Return the figures of one setting."""
    gc.collect()  # frees an earlier setting's models, which have reference cycles
    device = cfg.MODEL.DEVICE.partition(":")[0]
    batch = make_batch(cfg, images, size, args.padded)
    also = load_also(args.also, cfg) if args.also else {}
    steppers, skipped = make_steppers(cfg, args.methods, batch, precision, also)
    times = interleave(steppers, args.repeats, args.warmup)
    peaks = {name: stepper.peak_bytes(device) for name, stepper in steppers.items()}
    flops = {name: count_flops(stepper) for name, stepper in steppers.items()}
    trained = {name: stepper.trained for name, stepper in steppers.items()}
    run = {
        "value": value,
        "images": images,
        "size": "{} x {}".format(*size) if size else "the config's size",
        "variants": summarise(times, peaks, flops, trained, images),
        "skipped": skipped,
        "syncs": {},
        "operators": {},
    }
    if "dpk" in steppers and size:
        run["tokens"] = count_tokens(steppers["dpk"].model, size)
    if args.trace:
        write_trace(steppers["dpk"], args.trace)
    if args.syncs:
        run["syncs"] = {name: dict(count_syncs(x, device)) for name, x in steppers.items()}
    if args.operators:
        run["operators"] = {name: operator_times(steppers[name]) for name in ("floor", "dpk")}
    return run


def _describe(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    device = machine["gpu"] or f"CPU, {machine['threads']} threads of {machine['cores']} cores"
    return f"{device}; torch {machine['torch']}; load {report['load']:.1f} at the start"


def _plural(images: int) -> str:
    return f"{images} image{'s' if images > 1 else ''}"


def main() -> None:
    """Run the command line."""
    with exit_on_user_error():
        measure(parse_args())


if __name__ == "__main__":
    main()
