"""Measure the time of a training step for several configs side by side."""

import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from dpk_det import random_state
from dpk_det.architectures import build
from dpk_det.engine.start import has_teacher, make_teacher_weights, teacher_weights
from dpk_det.engine.trainer import DistillTrainer
from dpk_det.errors import UserError

SEED = 1
LIMIT = 120.0
"""Seconds after which fewer rounds are enough."""
FEWEST = 5
"""Rounds that are measured even after the limit."""


def step_times(
    configs: Mapping[str, CfgNode], rounds: int = 30, warmup: int = 5, limit: float = LIMIT
) -> dict[str, list[float]]:
    """Measure the seconds of a training step for several configs in one run.

    A step is forward, backward and the optimizer, on the first batch of the config's training data.
    The batch is loaded once, so the disk does not count. In each round every config takes a step,
    in random order, so load from other processes affects all configs alike. A teacher that is not
    trained yet has random weights, which cost the same.

    Args:
        configs: configs of trainings, by name, with registered datasets.
        rounds: measured steps of each config.
        warmup: rounds before the measured rounds.
        limit: seconds; after this time, one warm-up round and five measured rounds are enough.

    Returns:
        The seconds of each measured round, by the config's name.
    """
    with random_state.kept():
        steps = {name: _Step(cfg) for name, cfg in configs.items()}
        taken: dict[str, list[float]] = {name: [] for name in configs}
        names = [*configs]
        end, warm = time.monotonic() + limit, 0
        while len(taken[names[0]]) < (rounds if time.monotonic() < end else min(rounds, FEWEST)):
            counts = warm >= (warmup if time.monotonic() < end else min(warmup, 1))
            warm += 1
            random.shuffle(names)
            for name in names:
                seconds = steps[name]()
                if counts:
                    taken[name].append(seconds)
    return taken


class _Step:
    """Takes one training step per call and returns its seconds."""

    def __init__(self, cfg: CfgNode) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        torch.manual_seed(SEED)  # equal students find equally many regions
        self.model = _build(cfg).train()
        self.optimizer = DistillTrainer.build_optimizer(cfg, self.model)
        self.batch = next(iter(DistillTrainer.build_train_loader(cfg)))
        self.device, self.amp = cfg.MODEL.DEVICE.partition(":")[0], cfg.SOLVER.AMP.ENABLED
        self.storage = EventStorage()

    def __call__(self) -> float:
        self._wait()
        start = time.perf_counter()
        with self.storage, torch.autocast(self.device, enabled=self.amp):
            losses = self.model(self.batch)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # every step does the same work
        self.optimizer.step()
        self.storage.step()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _build(cfg: CfgNode) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        if has_teacher(cfg):
            try:
                found = Path(teacher_weights(cfg)).is_file()
            except UserError:
                found = False
            if not found:
                make_teacher_weights(cfg, f"{folder}/untrained.pth")
        return build(cfg)
