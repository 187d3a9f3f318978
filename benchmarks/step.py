#!/usr/bin/env python
"""What a training step costs: plain, with a teacher that is only looked at, and with each method.

    python benchmarks/step.py                                  # the small detectors of the shapes
    python benchmarks/step.py frcnn --batch 2 8 --precision fp32 fp16 bf16     # wants a GPU
    python benchmarks/step.py configs/dpk_mrcnn_r101_r50.yaml DISTILL.DPK.DIM 128 --size 400x600
    python benchmarks/step.py --sweep tokens

Variants: `plain`, the student alone; `floor`, the student and its teacher's backbone without
gradients, which every method that learns from maps pays for; then each method alone. A step is what
Detectron2's trainer does: forward, backward, SGD on student and distiller, and writing the losses
down. All variants take a step a round, in random order, from the same weights, on the same made-up
images, with the same random proposals; the learning rate is next to nothing, so that they stay
alike. The ratio to the floor is the median of the rounds' ratios.

Memory is the most that tensors hold during a step: the variant's weights, buffers, momentum and
gradients, its teacher, and what the step makes (see measure.peak_bytes for how it is seen). The
weights of the other variants, which are there too, do not count.
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.layers import CNNBlockBase, FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from measure import (
    Times,
    count_syncs,
    interleave,
    peak_bytes,
    tensor_bytes,
    write_trace,
)
from omegaconf import DictConfig
from tabulate import tabulate
from torch import Tensor, nn

from dpk_det.attach import distil
from dpk_det.config import load_config, method_arguments, plain_architecture
from dpk_det.data import classifies, made_up_batch
from dpk_det.distill.registry import DISTILLERS, find
from dpk_det.distill.tokens import token_grid
from dpk_det.engine import DistillTrainer
from dpk_det.engine.launch import exit_on_user_error, use_device
from dpk_det.engine.machine import describe_machine
from dpk_det.errors import UserError
from dpk_det.teacher import Teacher, build_teacher, load_teacher_config

Size = tuple[int, int]

# name: config, (height, width) of the images, images a step
PRESETS: dict[str, tuple[str, Size, int]] = {
    "shapes": ("configs/shapes/dpk.yaml", (96, 96), 8),
    "frcnn": ("configs/dpk_frcnn_r101_r18.yaml", (800, 1333), 2),
    "retinanet": ("configs/dpk_retinanet_r101_r50.yaml", (800, 1333), 2),
}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SEED = 1


class Floor(nn.Module):
    """A plain model that has its teacher look at every batch, and learns nothing from it."""

    def __init__(self, model: nn.Module, teacher: Teacher) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """The plain losses."""
        losses = self.model(batch)
        self.teacher(batch)
        return losses


class Autocast(nn.Module):
    """A model within autocast: Detectron2 0.6's own mixed precision is float16 on a GPU only."""

    def __init__(self, model: nn.Module, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.device, self.dtype = device, dtype

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """The model's losses."""
        with torch.autocast(self.device, self.dtype):
            return self.model(batch)


class Stepper:
    """A call is one training step of one variant, by Detectron2's own trainer.

    Args:
        cfg: tells the optimizer. model: training forward returns losses. batch: the same each step.
        precision: a name in PRECISIONS. teacher: where one is used that is no part of the model.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        batch: Any,
        precision: str = "fp32",
        teacher: Teacher | None = None,
    ) -> None:
        self.optimizer = DistillTrainer.build_optimizer(cfg, model)
        self.storage = EventStorage()
        self._tensors = [model, teacher.model] if teacher else [model]
        batches = itertools.repeat(batch)
        if precision == "fp16":
            # from 1: at its usual start of 65536 it skips the optimizer in the first steps
            scaler = torch.amp.GradScaler("cuda", init_scale=1.0)
            self.trainer = AMPTrainer(model, batches, self.optimizer, grad_scaler=scaler)
            return
        if precision == "bf16":
            model = Autocast(model, cfg.MODEL.DEVICE.partition(":")[0], torch.bfloat16)
        self.trainer = SimpleTrainer(model, batches, self.optimizer)

    def __call__(self) -> None:
        """Take a step."""
        with self.storage:
            self.trainer.run_step()
            self.storage.step()

    def held_bytes(self) -> int:
        """What weights, buffers and momentum take, a teacher's too; without gradients."""
        states = (x for state in self.optimizer.state.values() for x in state.values())
        weights = (x for m in self._tensors for x in (*m.parameters(), *m.buffers()))
        return tensor_bytes(x for x in (*weights, *states) if isinstance(x, Tensor))

    def peak_bytes(self, device: str) -> int:
        """The most that this variant holds at any time of its steps."""
        self.optimizer.zero_grad(set_to_none=True)

        def two_steps() -> None:  # the second begins with the first one's gradients, as is usual
            self()
            self()

        return self.held_bytes() + peak_bytes(two_steps, device)


def read_config(config: str, opts: Sequence[str]) -> CfgNode:
    """A preset's or any other distilled config, made fit for steps from made-up weights.

    Raises:
        UserError: as loading it does.
    """
    path = PRESETS[config][0] if config in PRESETS else config
    cfg = load_config(path, opts)
    use_device(cfg)
    cfg.MODEL.WEIGHTS = ""
    # weights that barely move: every step of every variant does the same work
    cfg.SOLVER.BASE_LR = 1e-6
    return plain_architecture(cfg)


def make_teacher(cfg: CfgNode) -> Teacher:
    """The teacher of a config, with random weights where it names none.

    Raises:
        UserError: when there is no such config.
    """
    cfg, node = cfg.clone(), cfg.DISTILL.TEACHER
    if node.WEIGHTS:
        return build_teacher(cfg)
    theirs = load_teacher_config(node.CONFIG_FILE, node.OPTS)
    torch.manual_seed(SEED + 1)
    if isinstance(theirs, DictConfig):
        model = instantiate(theirs.model)
    else:
        theirs = plain_architecture(theirs)
        theirs.MODEL.DEVICE = "cpu"
        model = build_model(theirs)
    calm(model)
    with tempfile.TemporaryDirectory() as folder:
        cfg.DISTILL.TEACHER.WEIGHTS = str(Path(folder) / "made_up.pth")
        torch.save({"model": model.state_dict()}, cfg.DISTILL.TEACHER.WEIGHTS)
        return build_teacher(cfg)


@torch.no_grad()
def calm(model: nn.Module) -> None:
    """Damp each residual block with frozen norms, in place.

    With random weights and nothing that normalises, a block doubles the variance: after the 33 of a
    ResNet-101 float16 overflows.
    """
    for block in model.modules():
        if isinstance(block, CNNBlockBase):
            norms = [m for m in block.modules() if isinstance(m, FrozenBatchNorm2d)]
            for norm in norms[-1:]:
                norm.weight.fill_(0.1)


def make_student(cfg: CfgNode) -> nn.Module:
    """The plain student, the same weights at each call."""
    torch.manual_seed(SEED)
    model = build_model(cfg)
    calm(model)
    return model


def make_batch(cfg: CfgNode, num_images: int, size: Size | None, padded: bool) -> Any:
    """Made-up images; padded: every second one is a quarter narrower, which takes masks."""
    torch.manual_seed(SEED)
    if not padded:
        return made_up_batch(cfg, num_images, size)
    if classifies(cfg) or size is None:
        raise UserError("Only detectors' batches are padded, and --padded wants a --size.")
    sizes = [size, (size[0], size[1] * 3 // 4)]
    return [made_up_batch(cfg, 1, sizes[i % 2])[0] for i in range(num_images)]


def make_steppers(
    cfg: CfgNode,
    methods: Sequence[str] | None,
    batch: Any,
    precision: str,
    also: Mapping[str, nn.Module],
) -> tuple[dict[str, Stepper], dict[str, str]]:
    """Every variant, and the methods that this student cannot learn by with the reason.

    Args:
        methods: by name; None: all that are registered, as far as they can be.
        also: further models by name, from another implementation.

    Raises:
        UserError: when one of the named methods does not fit.
    """
    teacher = make_teacher(cfg)
    steppers = {
        "plain": Stepper(cfg, make_student(cfg), batch, precision),
        "floor": Stepper(cfg, Floor(make_student(cfg), teacher), batch, precision, teacher),
    }
    skipped = {}
    for name in sorted(DISTILLERS, key=lambda x: (x != "dpk", x)) if methods is None else methods:
        find(DISTILLERS, name, "method")
        cfg.DISTILL.METHODS = [name]
        try:
            model = distil(
                make_student(cfg), teacher, method_arguments(cfg), cfg.DISTILL.LEVELS, 90000
            )
            stepper = Stepper(cfg, model, batch, precision, teacher)
            stepper()
        except UserError as e:
            if methods is not None:
                raise
            skipped[name] = str(e)
        else:
            steppers[name] = stepper
    for name, model in also.items():
        steppers[name] = Stepper(cfg, model.train(), batch, precision)
    return steppers, skipped


def load_also(path: Path, cfg: CfgNode) -> dict[str, nn.Module]:
    """What a file's ``variants(cfg)`` returns: models by name.

    Raises:
        UserError: when there is no such file, or no such function in it.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path} to take further variants from: correct --also.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "variants"):
        raise UserError(f"{path} has no function variants(cfg), which returns models by name.")
    return module.variants(cfg)


def summarise(
    times: Mapping[str, Sequence[Times]], peaks: Mapping[str, int], num_images: int
) -> dict[str, dict[str, Any]]:
    """Figures of each variant: medians with quartiles in seconds, ratios to plain and floor."""

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
        }
        for other in ("plain", "floor"):
            rounds = list(zip(taken, times[other], strict=True))
            figures[name][f"to_{other}"] = spread([a.wall / b.wall for a, b in rounds])
            figures[name][f"cpu_to_{other}"] = median(a.cpu / b.cpu for a, b in rounds)
    return figures


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as Markdown."""
    headers = [
        "variant", "ms a step", "quartiles", "x floor", "quartiles", "x floor, CPU time",
        "images a second", "peak MB",
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
                f"{x['peak_mb']:.0f}",
            ]
        )
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def sweep_table(quantity: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """One row a value of what is swept."""
    headers = [quantity, "tokens", "plain, ms", "floor, ms", "DPK, ms", "x floor", "DPK, peak MB"]
    rows = []
    for run in runs:
        figures = run["variants"]
        ms = (f"{1e3 * figures[x]['seconds']['median']:.1f}" for x in ("plain", "floor", "dpk"))
        dpk = figures["dpk"]
        ratio = f"{dpk['to_floor']['median']:.3f}"
        rows.append([run["value"], run["tokens"], *ms, ratio, f"{dpk['peak_mb']:.0f}"])
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def sync_table(syncs: Mapping[str, Mapping[str, int]]) -> str:
    """One row a place in the code, one column a variant."""
    places = dict.fromkeys(place for counts in syncs.values() for place in counts)
    rows = [[place, *(counts.get(place, 0) for counts in syncs.values())] for place in places]
    rows.append(["in all", *(sum(counts.values()) for counts in syncs.values())])
    return tabulate(rows, ["where", *syncs], tablefmt="github")


def count_tokens(cfg: CfgNode, model: nn.Module, size: Size) -> int:
    """DPK's tokens of an image of this size, over all levels."""
    return sum(
        math.prod(token_grid(*(math.ceil(x / level.stride) for x in size), completion.patch))
        for method in model.distiller.methods.values()
        for level, completion in zip(method.levels, method.completions.values(), strict=True)
    )


def sweep(
    quantity: str, cfg: CfgNode, batch: int, size: Size
) -> Iterator[tuple[str, CfgNode, int, Size]]:
    """The settings of a sweep: how the value reads, config, images, size of the images."""
    dpk = cfg.DISTILL.DPK
    for factor in {"area": (1, 2, 4, 8), "batch": (1, 2, 4, 8)}.get(quantity, ()):
        if quantity == "batch":
            yield str(factor), cfg, factor, size
        else:
            h, w = (32 * round(x * math.sqrt(factor / 4) / 32) or 32 for x in size)
            yield f"{h} x {w}", cfg, batch, (h, w)
    keys = {"tokens": ["TOKEN_STRIDE"], "depth": ["ENCODER_DEPTH", "DECODER_DEPTH"]}
    values = {"tokens": [2 * dpk.TOKEN_STRIDE // 2**i for i in range(4)], "depth": [1, 2, 4, 8]}
    for value in values.get(quantity, ()):
        changed = cfg.clone()
        for key in keys[quantity]:
            changed.DISTILL.DPK[key] = value
        yield f"{value} pixels" if quantity == "tokens" else str(value), changed, batch, size


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``sys.argv`` when none is given."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="Give options that take several values last.",
        allow_abbrev=False,
    )
    presets = ", ".join(PRESETS)
    parser.add_argument(
        "config", nargs="?", default="shapes", help=f"{presets}, or any config that distils"
    )
    parser.add_argument("opts", nargs="*", help="overrides of the config, KEY VALUE ...")
    parser.add_argument("--methods", nargs="+", help="default: all that the student can learn by")
    parser.add_argument(
        "--batch", type=int, nargs="+", help="images a step; several: one after another"
    )
    parser.add_argument("--size", type=_size, help="of the images, HEIGHTxWIDTH in pixels")
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
        choices=["area", "batch", "tokens", "depth"],
        help="plain, floor and DPK over a growing quantity",
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write a profiler trace of DPK's step"
    )
    parser.add_argument(
        "--syncs", action="store_true", help="count where plain, floor and DPK wait for the device"
    )
    args = parser.parse_intermixed_args(argv)
    if args.sweep or args.trace or args.syncs:
        args.methods = ["dpk"]
    return args


def _size(text: str) -> Size:
    height, _, width = text.partition("x")
    return int(height), int(width)


def measure(args: argparse.Namespace, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Do what the command line asks for, and print it.

    Returns:
        What ``--json`` writes.

    Raises:
        UserError: for a config, method or precision that cannot be.
    """
    cfg = read_config(args.config, args.opts)
    device = cfg.MODEL.DEVICE.partition(":")[0]
    if "fp16" in args.precision and device != "cuda":
        raise UserError("fp16 needs a GPU: choose fp32 or bf16 on this machine.")
    _, size, num_images = PRESETS.get(args.config, ("", None, cfg.SOLVER.IMS_PER_BATCH))
    size = args.size or size
    if args.sweep and size is None:
        raise UserError("A sweep starts from a size of the images: give one by --size.")
    # the load of the machine tells how far its seconds are to be believed
    report = {"machine": describe_machine(), "load": os.getloadavg()[0], "config": args.config}
    report |= {"opts": args.opts, "repeats": args.repeats, "runs": []}
    say(f"{args.config} {' '.join(args.opts)}, {args.repeats} rounds; {_describe(report)}\n")
    for precision, images in itertools.product(args.precision, args.batch or [num_images]):
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
            say(f"{precision}, from {where}:\n\n{sweep_table(args.sweep, runs)}\n")
            continue
        say(f"{where}:\n\n{table(runs[0]['variants'])}\n")
        for name, reason in runs[0]["skipped"].items():
            say(f"not run: {name} ({reason})")
        if runs[0]["syncs"]:
            say(f"waits for the device in a step:\n\n{sync_table(runs[0]['syncs'])}\n")
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
    """The figures of one setting."""
    device = cfg.MODEL.DEVICE.partition(":")[0]
    batch = make_batch(cfg, images, size, args.padded)
    also = load_also(args.also, cfg) if args.also else {}
    steppers, skipped = make_steppers(cfg, args.methods, batch, precision, also)
    times = interleave(steppers, args.repeats, args.warmup)
    peaks = {name: stepper.peak_bytes(device) for name, stepper in steppers.items()}
    run = {
        "value": value,
        "images": images,
        "size": "{} x {}".format(*size) if size else "the config's size",
        "variants": summarise(times, peaks, images),
        "skipped": skipped,
        "syncs": {},
    }
    if "dpk" in steppers and size:
        run["tokens"] = count_tokens(cfg, steppers["dpk"].trainer.model, size)
    if args.trace:
        write_trace(steppers["dpk"], args.trace)
    if args.syncs:
        run["syncs"] = {name: dict(count_syncs(x, device)) for name, x in steppers.items()}
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
    sys.exit(main())
