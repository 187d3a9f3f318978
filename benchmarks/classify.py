#!/usr/bin/env python
"""Measures images per second in a classifier's training: this project and a bare PyTorch loop.

This project's training is what tools/train_net.py runs: trainer, hooks, data loader, event storage,
log and metrics files. The bare loop is a for loop with the same network, optimizer settings, batch
size, images in memory and augmentation. They take turns in one process, a block of steps each, so
that other load on the machine slows both. It prints a Markdown table: medians over the blocks, and
the ratio of each pair of neighbouring blocks, by the clock and by the process's CPU time, which a
busy machine changes less. Without CIFAR-10 the images are made up.
"""

import argparse
import contextlib
import json
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from dpk_det.architectures import plain_architecture
from dpk_det.config.loading import load_config
from dpk_det.data import build_image_train_loader
from dpk_det.data.image_loaders import shift_and_flip
from dpk_det.data.image_sets import find_place
from dpk_det.engine.ends import exit_on_user_error
from dpk_det.engine.machine import describe_machine
from dpk_det.engine.train import parse_args as parse_train_args
from dpk_det.engine.train import setup
from dpk_det.engine.trainer import DistillTrainer
from dpk_det.errors import UserError

FOLDER = Path(__file__).parents[1] / "configs/classification/cifar10"
WRITES = 20  # steps between two lines of the log, as in Detectron2's trainer


class TakeTurns(HookBase):
    """Lets the bare loop take as many steps after each block of the trainer, and times both.

    It has to be the last hook, so that the trainer's time includes the other hooks.

    Args:
        bare: takes the given number of steps.
        steps: number of steps of a block.
        device: device of both.

    Attributes:
        seconds: seconds of each block of "trainer" and "bare", by the clock and of CPU time.
    """

    def __init__(self, bare: Callable[[int], None], steps: int, device: str) -> None:
        self.bare, self.steps, self.device = bare, steps, device
        self.seconds: dict[str, list[tuple[float, float]]] = {"trainer": [], "bare": []}

    def before_train(self) -> None:
        """Start the clock."""
        self._start = self._now()

    def after_step(self) -> None:
        """Run the other loop at the end of a block."""
        if (self.trainer.iter + 1) % self.steps:
            return
        between = self._now()
        self.bare(self.steps)
        end = self._now()
        for name, since, until in (("trainer", self._start, between), ("bare", between, end)):
            self.seconds[name].append((until[0] - since[0], until[1] - since[1]))
        self._start = self._now()

    def _now(self) -> tuple[float, float]:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def bare_loop(cfg: CfgNode) -> Callable[[int], None]:
    """Return a loop as one writes it for one network. A call takes the given number of steps."""
    model, device = build_model(cfg).train(), cfg.MODEL.DEVICE
    solver, node, batch_size = cfg.SOLVER, cfg.INPUT.IMAGES, cfg.SOLVER.IMS_PER_BATCH
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
    )
    dataset = build_image_train_loader(cfg).dataset
    last = list(model.backbone.output_shape())[-1]
    flip = cfg.INPUT.RANDOM_FLIP == "horizontal"
    mean, std = (
        torch.tensor(x, device=device).view(3, 1, 1)
        for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        if hasattr(model, "distillation"):
            return sum(model({"images": images, "labels": labels}).values())
        maps = model.backbone((images.to(device) - mean) / std)
        return F.cross_entropy(model.head(maps[last].mean((2, 3))), labels.to(device))

    def run(steps: int) -> None:
        for index in torch.randint(len(dataset), (steps, batch_size)):
            images = shift_and_flip(dataset.images[index], node.PAD, flip)
            loss = loss_of(images, dataset.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def measure(config: str, batch_size: int, steps: int, blocks: int) -> dict[str, Any]:
    """Return the seconds of each block of both loops, without the first, which warms up."""
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "SOLVER.IMS_PER_BATCH": batch_size,
            "SOLVER.MAX_ITER": steps * (blocks + 1) + 1,  # the last step writes a checkpoint
            "SOLVER.STEPS": "()",
            "DATASETS.TEST": "()",  # nothing is evaluated at the end
            "OUTPUT_DIR": folder,
        }
        opts = [str(x) for pair in own.items() for x in pair]
        cfg = setup(parse_train_args(["--config-file", config, *opts]))
        with contextlib.redirect_stdout(sys.stderr):  # the log goes there from now on
            for name in ("detectron2", "fvcore", "dpk_det"):
                setup_logger(folder, name=name)
        trainer = DistillTrainer(cfg)
        turns = TakeTurns(bare_loop(cfg), steps, cfg.MODEL.DEVICE)
        trainer.register_hooks([turns])
        trainer.train()
    return {name: seconds[1:] for name, seconds in turns.seconds.items()}


def summarise(batch_size: int, steps: int, seconds: dict[str, Any]) -> dict[str, Any]:
    """Return one batch size's images per second, and the trainer's over the bare loop's."""
    rates = {name: [batch_size * steps / clock for clock, _ in x] for name, x in seconds.items()}
    ratios, cpu_ratios = (
        [bare[i] / own[i] for own, bare in zip(seconds["trainer"], seconds["bare"], strict=True)]
        for i in (0, 1)
    )
    return {"batch": batch_size, **rates, "ratios": ratios, "cpu_ratios": cpu_ratios}


def spread(ratios: list[float]) -> str:
    """Format the median, the least and the greatest ratio."""
    return f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def make_images(folder: Path, num: int = 4096) -> dict[str, Any]:
    """Write noise in the form of CIFAR-10's archive; return the config keys that name it."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(num, 3 * 32 * 32), dtype=np.uint8)
    content = {
        "data_batch_1": {"data": images, "labels": rng.integers(10, size=num).tolist()},
        "batches.meta": {"label_names": [str(i) for i in range(10)]},
    }
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value, protocol=2))
    return {"DATASETS": {"IMAGES": {"made_up": [str(folder), "train"]}, "TRAIN": ["made_up"]}}


def make_teacher(cfg: CfgNode, folder: Path) -> dict[str, Any]:
    """Write random weights for the teacher; return the config keys that name them."""
    teacher = plain_architecture(load_config(cfg.DISTILL.TEACHER.CONFIG_FILE))
    teacher.MODEL.DEVICE = "cpu"
    torch.save({"model": build_model(teacher).state_dict()}, folder / "teacher.pth")
    return {"DISTILL": {"TEACHER": {"WEIGHTS": str(folder / "teacher.pth")}}}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--distil", action="store_true", help="with DPK, under a random ResNet-56")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--blocks", type=int, default=10, help="of each loop, after a first one")
    parser.add_argument("--steps", type=int, default=WRITES, help=f"a block; multiple of {WRITES}")
    parser.add_argument("--json", type=Path, help="write what was measured to this file, too")
    args = parser.parse_args()
    if args.steps % WRITES:  # otherwise only some blocks would write a line of the log
        parser.error(f"--steps is {args.steps}: make it a multiple of {WRITES}.")

    config = FOLDER / ("dpk_resnet56_resnet20.yaml" if args.distil else "plain_resnet20.yaml")
    with tempfile.TemporaryDirectory() as folder, exit_on_user_error():
        cfg, images = load_config(str(config)), "CIFAR-10"
        content: dict[str, Any] = {"_BASE_": str(config)}
        try:
            find_place(*cfg.DATASETS.TRAIN)
        except UserError:
            content |= make_images(Path(folder))
            images = "made-up images"
        if args.distil:
            content |= make_teacher(cfg, Path(folder))
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(content))
        rows = [
            summarise(n, args.steps, measure(f"{folder}/config.yaml", n, args.steps, args.blocks))
            for n in args.batches
        ]
    machine = describe_machine()
    if args.json:
        content = {"config": config.name, "images": images, "machine": machine, "rows": rows}
        args.json.write_text(json.dumps(content, indent=2) + "\n")
    where = machine["gpu"] or f"CPU, {machine['threads']} threads"
    print(f"{config.stem}, {images}, {where}; {args.blocks} pairs of {args.steps} steps\n")
    table = [
        [
            x["batch"],
            *(f"{median(x[name]):.0f}" for name in ("trainer", "bare")),
            *(spread(x[name]) for name in ("ratios", "cpu_ratios")),
        ]
        for x in rows
    ]
    headers = ["batch", "trainer, images/s", "bare loop, images/s", "ratio", "ratio of CPU time"]
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
