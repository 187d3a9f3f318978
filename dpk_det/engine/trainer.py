"""Detectron2's default trainer, extended for distillation."""

import logging
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from dpk_det import random_state
from dpk_det.architectures import build, classifies
from dpk_det.data import (
    TrainLoader,
    build_detection_train_loader,
    build_image_test_loader,
    build_image_train_loader,
)
from dpk_det.data.loader_workers import leave_signals_to_parent
from dpk_det.data.mapper import NamingMapper
from dpk_det.engine.augmented import test_augmented
from dpk_det.engine.average import AVERAGE, AverageHook
from dpk_det.engine.best import BestHook, NoMoreGain
from dpk_det.engine.ends import no_traceback_of_mistakes
from dpk_det.engine.evaluators import build_evaluator
from dpk_det.engine.finite import explain, require_finite
from dpk_det.engine.hooks import PriorPrinter, SaveHook, SavingEvalHook
from dpk_det.engine.machine import peak_memory_mb
from dpk_det.engine.results import count_parameters, write_results
from dpk_det.engine.resume.checkpoints import Checkpoint, TrainingCheckpointer
from dpk_det.engine.resume.continuity import RESULTS, Continuity, find_start, take_up
from dpk_det.engine.signals import StopHook, at_once
from dpk_det.engine.snapshots import SnapshotHook
from dpk_det.engine.start import load_start
from dpk_det.engine.tracker import TrackerWriter
from dpk_det.errors import UserError
from dpk_det.files import no_room_ends
from dpk_det.pairing.ddp import unwrap
from dpk_det.pairing.scaling import scale_to_processes


class DistillTrainer(DefaultTrainer):
    """Trains both plain and distilling models.

    Differences from the default trainer: ``MODEL.WEIGHTS`` may be in torchvision's layout,
    ``DISTILL.INHERIT`` takes effect, the console line shows the prior, and a finished run writes
    ``results.json``.
    """

    best: BestHook | None = None
    average: AverageHook | None = None
    tracker: TrackerWriter | None = None

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(scale_to_processes(cfg))

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint, or start from ``MODEL.WEIGHTS`` and the teacher's heads.

        Raises:
            UserError: see :func:`~.resume.continuity.find_start` and :meth:`start_from`.
        """
        self.start_from(find_start(self.cfg, resume))

    def start_from(self, checkpoint: Checkpoint | None) -> None:
        """Resume from a checkpoint; if None, start from ``MODEL.WEIGHTS`` and the teacher's heads.

        Raises:
            UserError: when weights are not found, or the checkpoint belongs to another training.
        """
        if checkpoint:
            for line in checkpoint.skipped:
                logging.getLogger("dpk_det").warning(line)
            self.checkpointer.load(str(checkpoint.path))
            self.start_iter = self.iter + 1
            return
        load_start(unwrap(self._trainer.model), self.cfg)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """See :func:`dpk_det.architectures.build`."""
        return build(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """Build Detectron2's optimizer. ``SOLVER.FUSED`` selects torch's fused kernels."""
        optimizer = super().build_optimizer(cfg, model)
        if cfg.SOLVER.FUSED:
            for group in optimizer.param_groups:
                group.update(fused=True, foreach=False)
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Build the loader. Batches depend only on seed, step and rank. Classifiers get tensors.

        Raises:
            UserError: when the data cannot be read, or no usable image is there.
        """
        if classifies(cfg):
            return build_image_train_loader(cfg)
        try:
            return build_detection_train_loader(cfg, NamingMapper.from_config(cfg, is_train=True))
        except AssertionError as e:  # Detectron2 found no usable image in a dataset
            raise UserError(
                f"The training data cannot be used ({' '.join(str(e).split())}): correct "
                "DATASETS.TRAIN."
            ) from e

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Build Detectron2's loader or, for a classifier, a loader of batches as tensors."""
        if classifies(cfg):
            return build_image_test_loader(cfg, dataset_name)
        mapper = NamingMapper.from_config(cfg, is_train=False)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        loader.worker_init_fn = leave_signals_to_parent  # the function has no argument for it
        return loader

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """See :func:`dpk_det.engine.evaluators.build_evaluator`."""
        return build_evaluator(cfg, dataset_name)

    def build_writers(self) -> list[EventWriter]:
        """Build Detectron2's writers, the console's with the prior, and the tracker's writer."""
        console, *files = super().build_writers()
        self.writers = [PriorPrinter(self.max_iter), *files]
        if self.cfg.TRACKER.NAME:
            self.tracker = TrackerWriter(self.cfg)
            self.writers.append(self.tracker)
        return self.writers

    def before_train(self) -> None:
        """Begin the tracker's run, then call the hooks.

        Raises:
            UserError: when the tracker cannot begin a run.
        """
        if self.tracker:
            self.tracker.open(resume=self.start_iter > 0)
        super().before_train()

    @property
    def result(self) -> nn.Module:
        """The model to evaluate: the average with ``SOLVER.EMA_DECAY``, or the current model."""
        return self.average.model if self.average else self.model

    def _test(self) -> dict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.result)
        return self._last_eval_results

    def _test_augmented(self) -> dict[str, Any]:
        results = test_augmented(self.cfg, self.result, self.test)
        self._last_eval_results.update(results)
        return results

    @classmethod
    def test(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Evaluate as Detectron2 does; a signal ends it at once.

        The random numbers of the training stay unchanged.
        """
        with at_once(), random_state.kept():
            return super().test(*args, **kwargs)

    def run_step(self) -> None:
        """Take a step.

        Raises:
            UserError: when its losses, or the weights before it, are infinite or NaN.
        """
        try:
            super().run_step()
        except UserError:
            raise
        except Exception as e:
            model = unwrap(self._trainer.model)
            sentence = explain(e, model, self.iter + 1, self.cfg.OUTPUT_DIR)
            if sentence is None:
                raise
            raise sentence from e

    def after_step(self) -> None:
        """Call the hooks after a step: save, evaluate, write figures.

        Raises:
            UserError: when the disk is full.
        """
        with no_room_ends(self.cfg.OUTPUT_DIR):
            super().after_step()

    def after_train(self) -> None:
        """Close the writers. Evaluate only if the training went through all its steps."""
        if self.iter < self.max_iter:  # EvalHook would still evaluate if the last step failed
            self._hooks = [hook for hook in self._hooks if not isinstance(hook, EvalHook)]
        super().after_train()

    def train(self) -> Any:
        """Train, evaluate, and write the figures to ``OUTPUT_DIR/results.json``."""
        if comm.is_main_process():  # no old results may remain if this run fails
            (Path(self.cfg.OUTPUT_DIR) / RESULTS).unlink(missing_ok=True)
        with no_traceback_of_mistakes():
            try:
                results = super().train()
            except NoMoreGain:
                self.iter += 1  # as after a training's last step
                if self.cfg.TEST.AUG.ENABLED:
                    self._test_augmented()
                results = self._last_eval_results
        if comm.is_main_process():
            self.write_results()
        return results

    def build_hooks(self) -> list[HookBase]:
        """Build Detectron2's hooks, with exactly resumable checkpoints, and this project's own."""
        self.checkpointer = TrainingCheckpointer(  # first, because Detectron2's hooks take it
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        hooks = [x for x in super().build_hooks() if not isinstance(x, PeriodicCheckpointer)]
        place = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        test, solver = self.cfg.TEST, self.cfg.SOLVER
        own = [
            SnapshotHook(self.cfg.INPUT.FORMAT == "RGB"),
            SaveHook(solver.CHECKPOINT_PERIOD),
            StopHook(),
            SavingEvalHook(test.EVAL_PERIOD, self._test),
        ]
        if solver.EMA_DECAY:
            self.average = AverageHook(self.model, solver.EMA_DECAY)
            own.insert(0, self.average)
        if test.AUG.ENABLED:
            own.append(EvalHook(0, self._test_augmented))
        if test.BEST_METRIC:
            self.best = BestHook(test.EVAL_PERIOD, test.BEST_METRIC, test.PATIENCE)
            own.append(self.best)
        hooks[place : place + 1] = own
        self.continuity = Continuity(self.writers if comm.is_main_process() else [])
        return [*hooks, self.continuity]

    def save_checkpoint(self, name: str = "") -> None:
        """Save the current step as ``model_NUMBER`` or ``name``. All ranks must call it.

        Raises:
            UserError: when weights are infinite or NaN, or the disk is full.
        """
        require_finite(unwrap(self.model), self.iter + 1, self.cfg.OUTPUT_DIR)
        self.continuity.gather()
        self.checkpointer.save(name or f"model_{self.iter:07d}", iteration=self.iter)
        if self.average:
            self.save_weights(AVERAGE)

    def save_weights(self, name: str) -> None:
        """Save only the weights of the model to evaluate.

        Raises:
            UserError: when the disk is full.
        """
        self.checkpointer.save_weights(name, unwrap(self.result))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a checkpoint, with the optimizer that Detectron2 0.6 leaves out."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a checkpoint's state. Rates, decays and schedule come from the config.

        Raises:
            UserError: when the checkpoint belongs to another training.
        """
        take_up(self, state_dict, [x for x in (self.best, self.average) if x])

    def write_results(self) -> None:
        """Write the figures to ``OUTPUT_DIR/results.json``, which marks the run as done."""
        model = unwrap(self._trainer.model)
        num_distiller = count_parameters(getattr(model, "distiller", None))
        times = self.storage.histories().get("time")  # absent if no step was left to train
        write_results(
            Path(self.cfg.OUTPUT_DIR) / RESULTS,
            {
                "iterations": min(self.iter, self.max_iter),
                "ended_early": self.iter < self.max_iter,
                **({"best": self.best.best} if self.best else {}),
                "parameters": count_parameters(model) - num_distiller,
                "distiller_parameters": num_distiller,
                "seconds_per_step": times and times.median(self.iter),
                "peak_memory_mb": peak_memory_mb(),
                "resumed": self.continuity.resumed,
                "results": getattr(self, "_last_eval_results", {}),
            },
        )
