#!/usr/bin/env python
"""Measures how much of the teacher's maps a trained student's maps explain, without a distiller.

For each student and level it gives two shares of the variance of the teacher's standardised map,
over all cells of the evaluation images. The student's map explains the first share unchanged,
channel by channel (squared correlation, if both maps have the same width). The best 1 x 1
convolution of the student's map explains the second (least squares, fitted on the same cells).

    python benchmarks/explained.py --teacher output/NAME/runs/teacher output/NAME/runs/pkd-seed1 ...

It takes folders of finished trainings of detectors with their weights and prints a Markdown table.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from tabulate import tabulate
from torch import Tensor, nn

from dpk_det import load_config
from dpk_det.architectures import build, plain_architecture
from dpk_det.checkpoint.loading import load_weights
from dpk_det.distill import Distiller, Features, Level
from dpk_det.pairing.levels import pair_levels
from dpk_det.pairing.teacher import Teacher

RIDGE = 1e-6
"""Share of the mean variance on the diagonal, so that dead channels leave the fit regular."""


class Moments:
    """Sums over cells in float64, for correlations and least squares."""

    def __init__(self) -> None:
        self.n, self.sum, self.products = 0, 0.0, 0.0

    def add(self, student: Tensor, teacher: Tensor) -> None:
        """Add (n, Cs) and (n, Ct), the same n cells of both maps."""
        z = torch.cat([student, teacher], 1).double()
        self.n += len(z)
        self.sum = self.sum + z.sum(0)
        self.products = self.products + z.T @ z

    def explained(self, width: int) -> tuple[float | None, float]:
        """Return how much the first ``width`` columns, the student's, explain of the others.

        Returns:
            Two means over the teacher's channels: of the squared correlation with the same channel
            of the student (None if the widths differ), and of the share that least squares explain.
        """
        mean = self.sum / self.n
        covariance = self.products / self.n - mean.outer(mean)
        s, cross, t = (
            covariance[:width, :width],
            covariance[:width, width:],
            covariance[width:, width:].diagonal(),
        )
        alive = t > 1e-12
        fit = torch.linalg.solve(s + RIDGE * s.diagonal().mean() * torch.eye(width), cross)
        linear = ((cross * fit).sum(0) / t)[alive].mean().item()
        if width != len(t):
            return None, linear
        correlation = cross.diagonal() / (s.diagonal() * t).sqrt().clamp(min=1e-12)
        return correlation.square()[alive].mean().item(), linear


def load(folder: Path) -> tuple[nn.Module, CfgNode]:
    """Return the plain network of a finished training, in eval mode, and its config."""
    cfg = plain_architecture(load_config(folder / "config.yaml", ["MODEL.DEVICE", "cpu"]))
    model = build(cfg)
    load_weights(model, str(folder / "model_final.pth"))
    return model.eval().requires_grad_(False), cfg


@torch.no_grad()
def measure(
    student: Callable[[list[dict]], Features],
    teacher: Callable[[list[dict]], Features],
    levels: list[Level],
    batches: Iterable[list[dict]],
) -> dict[str, tuple[float | None, float]]:
    """Return the student's level -> :meth:`Moments.explained`; padding is left out."""
    eyes, moments = Distiller(levels), {level: Moments() for level in levels}
    for batch in batches:
        for pair in eyes.pairs(student(batch), teacher(batch)):
            own, other = (x.movedim(1, -1) for x in (pair.student, pair.teacher))
            cells = torch.ones(own.shape[:-1], dtype=bool) if pair.cells is None else pair.cells
            moments[pair.level].add(own[cells], other[cells])
    return {x.student: sums.explained(x.student_channels) for x, sums in moments.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("students", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--teacher", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    other, other_cfg = load(args.teacher)
    rows = []
    for folder in args.students:
        own, cfg = load(folder)
        loader = build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])
        levels = pair_levels(own.backbone.output_shape(), other.backbone.output_shape(), [])
        # Teacher gives each model images in its own normalisation and channel order
        eyes = [
            Teacher(model, its.INPUT.FORMAT, cfg.INPUT.FORMAT)
            for model, its in ((own, cfg), (other, other_cfg))
        ]
        found = measure(*eyes, levels, loader)
        shown = ("" if x is None else f"{x:.2f}" for pair in found.values() for x in pair)
        rows.append([folder.name, *shown])
    heads = [f"{level}, {what}" for level in found for what in ("as it is", "linear")]
    print(tabulate(rows, ["student", *heads], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
