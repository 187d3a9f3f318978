#!/usr/bin/env python
"""Runs all benchmarks and trainings that need a GPU, in calls of at most nine minutes.

    python benchmarks/gpu.py                 # as much as fits into nine minutes
    python benchmarks/gpu.py                 # continues from there
    python benchmarks/gpu.py --list          # what is done, and what is left

Each piece is a command, and its output goes to a file in ``--output``. A later call runs pieces
that failed or were cut short again, after all others. The exit status is 1 if a piece failed.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

STEP = "benchmarks/step.py --preset"
TRAIN = "tools/train_net.py --config-file configs/shapes/dpk.yaml --resume SOLVER.MAX_ITER 40"
TORCHRUN = "-m torch.distributed.run --nproc-per-node gpu"
# the most informative first
PIECES = {
    **{
        f"{preset}-{precision}": f"{STEP} {preset} --batch 2 8 --precision {precision} "
        f"--json OUTPUT/{preset}-{precision}.json"
        for precision in ("fp16", "bf16", "fp32")
        for preset in ("frcnn", "retinanet")
    },
    "frcnn-syncs": f"{STEP} frcnn --syncs --trace OUTPUT/dpk.json",
    "nccl-amp": f"{TORCHRUN} {TRAIN} SOLVER.AMP.ENABLED True OUTPUT_DIR OUTPUT/nccl-amp",
    "nccl": f"{TORCHRUN} {TRAIN} OUTPUT_DIR OUTPUT/nccl",
    "frcnn-operators": f"{STEP} frcnn --operators",
    "frcnn-padded": f"{STEP} frcnn --batch 2 8 --padded --precision fp32 fp16",
    **{
        f"frcnn-{what}": f"{STEP} frcnn --precision fp16 --sweep {what}"
        for what in ("form", "tokens", "area", "batch", "depth")
    },
    "cka": "benchmarks/cka.py",
    "classify": "benchmarks/classify.py",
}


def run_piece(name: str, output: Path, seconds: float) -> str:
    """Run a piece. Returns "done", "failed" or "cut short"."""
    log = output / f"{name}.txt"
    partial = log.with_suffix(".partial")
    command = [sys.executable, *shlex.split(PIECES[name].replace("OUTPUT/", f"{output}/"))]
    with partial.open("w") as file:
        print(f"$ {shlex.join(['python', *command[1:]])}", file=file, flush=True)
        try:
            subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, check=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return "cut short"
        except subprocess.CalledProcessError:
            return "failed"
    partial.rename(log)
    return "done"


def main(argv: list[str] | None = None) -> None:
    """Run what is left, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("output/gpu"))
    parser.add_argument("--seconds", type=float, default=540.0, help="of this call (default: 540)")
    parser.add_argument("--only", nargs="+", choices=PIECES, default=[*PIECES])
    parser.add_argument("--list", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    if not args.list and not torch.cuda.is_available():
        parser.error("torch finds no GPU here, which all pieces are for.")
    args.output.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + args.seconds
    # unfinished pieces come last, so that they do not take time from others again
    tried = {name: (args.output / f"{name}.partial").exists() for name in args.only}
    states = {}
    for name in sorted(args.only, key=tried.get):
        if (args.output / f"{name}.txt").exists():
            state = "done before"
        elif args.list or time.monotonic() >= until:
            state = "left"
        else:
            state = run_piece(name, args.output, until - time.monotonic())
        print(f"{name}: {state}", flush=True)
        states[name] = state
    if "failed" in states.values():
        sys.exit(1)


if __name__ == "__main__":
    main()
