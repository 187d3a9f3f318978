"""Resume a training: choose the checkpoint, and restore the training from it.

A resumed training follows the config that it is resumed with. It takes from the checkpoint the
weights, the optimizer's momentum, the random numbers, and the place in the data and in the curves.
On a CPU it then equals an uninterrupted training, bit for bit. If a changed setting influences the
training, the training still resumes and is marked as not exact.
"""

import dataclasses
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, PeriodicWriter, PreciseBN
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from dpk_det import random_state
from dpk_det.data import TrainLoader
from dpk_det.data.train_loader import Place
from dpk_det.engine.best import BestHook
from dpk_det.engine.launch import first_rank_does
from dpk_det.engine.resume.changes import influential_changes
from dpk_det.engine.resume.checkpoints import FINAL, Checkpoint, checkpoint_files, last_checkpoint
from dpk_det.engine.resume.metrics import go_on_after, last_written, put_back, recent
from dpk_det.engine.resume.optimizer import load_momenta, parameter_names, set_schedule
from dpk_det.errors import UserError
from dpk_det.pairing.ddp import unwrap
from dpk_det.pairing.scaling import scale_to_processes

RESULTS = "results.json"


def find_start(cfg: CfgNode, resume: bool) -> Checkpoint | None:
    """Return the checkpoint to resume from, or None to start from ``MODEL.WEIGHTS``.

    All ranks must call this function.

    Raises:
        UserError: when ``OUTPUT_DIR`` holds checkpoints but none is whole or ``resume`` is False,
            when a rank cannot read the checkpoint, when the config changes a key that cannot
            change, or when ``SOLVER.MAX_ITER`` is below the step of the checkpoint.
    """
    # Only one rank searches, so that all ranks take the same checkpoint.
    found = first_rank_does(lambda: _look(cfg.OUTPUT_DIR, resume))
    if found is None:
        return None
    if not found.path.is_file():
        raise UserError(
            f"Rank {comm.get_rank()} cannot read {found.path}: put OUTPUT_DIR on a disk that all "
            "machines share."
        )
    cfg = scale_to_processes(cfg)
    if found.config:
        influential_changes(found.config, cfg, found.path)
    if found.step > cfg.SOLVER.MAX_ITER:
        raise UserError(
            f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER} but {found.path} has made {found.step} "
            "steps: raise it, or train in another OUTPUT_DIR."
        )
    return found


def _look(folder: str, resume: bool) -> Checkpoint | None:
    if resume:
        return last_checkpoint(folder)
    files = checkpoint_files(folder)
    if files:
        raise UserError(
            f"OUTPUT_DIR {folder} holds the checkpoints of another training ({files[-1].name}): "
            "add --resume to go on with it, choose another OUTPUT_DIR, or remove that folder."
        )
    return None


def what_continues(cfg: CfgNode, checkpoint: Checkpoint) -> str | None:
    """Return what to change so that a finished training goes on; None if it is not finished.

    A training and its evaluation are complete after the last step, or after as many evaluations
    without a new best as ``TEST.PATIENCE`` allowed and allows.
    """
    if checkpoint.path.stem != FINAL:
        return None
    try:
        results = json.loads((Path(cfg.OUTPUT_DIR) / RESULTS).read_text())
        if results["iterations"] != checkpoint.step:
            return None
        if checkpoint.step == scale_to_processes(cfg).SOLVER.MAX_ITER:
            return "raise SOLVER.MAX_ITER"
        patience = yaml.safe_load(checkpoint.config)["TEST"]["PATIENCE"]
        if results.get("ended_early", False) and 0 < cfg.TEST.PATIENCE <= patience:
            return "raise TEST.PATIENCE, or set it to 0,"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


# ------------------------------------------------------------------ what a checkpoint keeps


class Continuity(HookBase):
    """Adds to checkpoints what a trainer needs to resume as if it had never stopped.

    Register it after all other hooks.

    Args:
        writers: the writers of the curves; empty on ranks other than 0.

    Attributes:
        resumed: one record for each resumption, with ``step``, ``exact`` and, if not exact,
            ``why``.
    """

    def __init__(self, writers: Sequence[EventWriter] = ()) -> None:
        self.resumed: list[dict[str, Any]] = []
        self._writers = writers
        self._random: tuple[int, list[random_state.State]] = (-1, [])
        self._curves: dict[str, Any] = {}
        self._last_written = -1
        self._teacher: int | None = None

    def gather(self) -> None:
        """Collect the ranks' random states for a checkpoint of this step. All ranks call it."""
        self._random = self.trainer.iter, comm.gather(random_state.get_state())

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint, in numbers, texts and tensors."""
        trainer, loader = self.trainer, self.trainer.data_loader
        step, states = self._random
        state = {
            "config": trainer.cfg.dump(),
            "parameters": parameter_names(unwrap(trainer.model), trainer.optimizer),
            "teacher": self._teacher_checksum(),
            "num_processes": comm.get_world_size(),
            "random": states if step == trainer.iter else [],
            "resumed": self.resumed,
            "curves": recent(trainer.storage) if hasattr(trainer, "storage") else {},
            "last_written": last_written(self._writers),
        }
        if isinstance(loader, TrainLoader):
            state["place"] = dataclasses.asdict(loader.place)
            state["images_per_step"] = loader.images_per_step
            state["num_images"] = loader.num_images
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore data, random numbers and curves. The trainer's ``iter`` is the last step done.

        Args:
            state: the result of :meth:`state_dict`; empty for a checkpoint without one.

        Raises:
            UserError: when the teacher's weights differ.
        """
        trainer = self.trainer
        if state.get("teacher") not in (None, self._teacher_checksum()):
            raise UserError(
                "The teacher's weights are not those that the training in "
                f"{trainer.cfg.OUTPUT_DIR} was begun with: give DISTILL.TEACHER the same, or "
                "choose another OUTPUT_DIR."
            )
        why = self._differences(state)
        self._take_up_data(state, same_order=not why)
        if len(state.get("random", [])) == comm.get_world_size():
            random_state.set_state(state["random"][comm.get_rank()])
        else:
            random_state.seed_all(max(trainer.cfg.SEED, 0), trainer.iter + 1, comm.get_rank())
        self._curves = state.get("curves", {})
        self._last_written = state.get("last_written", trainer.iter)
        record = {"step": trainer.iter + 1, "exact": not why}
        if why:
            record["why"] = "; ".join(why)
        self.resumed = [*state.get("resumed", []), record]
        logging.getLogger("dpk_det").info(
            "Resuming after step %d, %s.",
            trainer.iter + 1,
            f"not exactly as if it had not stopped: {record['why']}" if why else "exactly",
        )

    def _differences(self, state: Mapping[str, Any]) -> list[str]:
        """Return the reasons why the resumed training is not exactly an uninterrupted one."""
        trainer, loader = self.trainer, self.trainer.data_loader
        if not state:
            return ["the checkpoint is of an older version"]
        keys = influential_changes(state["config"], trainer.cfg, trainer.cfg.OUTPUT_DIR)
        why = [f"{key} was changed" for key in keys]
        counts = {"processes": (state["num_processes"], comm.get_world_size())}
        if not isinstance(loader, TrainLoader) or "place" not in state:
            why.append("the train loader is not dpk_det's")
        else:
            counts["images per step"] = state["images_per_step"], loader.images_per_step
            counts["images in the dataset"] = state["num_images"], loader.num_images
        why += [f"{old} {what} became {new}" for what, (old, new) in counts.items() if old != new]
        if not state["random"]:
            why.append("the random numbers were not saved")
        return why

    def _take_up_data(self, state: Mapping[str, Any], same_order: bool) -> None:
        loader, step = self.trainer.data_loader, self.trainer.iter + 1
        if not isinstance(loader, TrainLoader):
            return
        place = Place(**state["place"]) if "place" in state else loader.place
        if not same_order:
            images = state.get("images_per_step", loader.images_per_step)
            seen = place.position + (step - place.step) * images
            place = Place(place.seed, step, seen)
        loader.place, loader.step = place, step
        for hook in self.trainer._hooks:
            if isinstance(hook, PreciseBN) and isinstance(hook._data_loader, TrainLoader):
                done = step // hook._period if hook._period else 0
                hook._data_loader.place = Place(place.seed)
                hook._data_loader.step = done * hook._num_iter

    def _teacher_checksum(self) -> int | None:
        bond = getattr(unwrap(self.trainer.model), "distillation", None)
        if bond and self._teacher is None:
            self._teacher = _checksum(bond.teacher.model)
        return self._teacher

    def before_train(self) -> None:
        """Restore the curves, and finish the saved step.

        A checkpoint is saved before the evaluation, because the evaluation may fail.
        """
        trainer = self.trainer
        if comm.is_main_process():
            go_on_after(self._writers, trainer.cfg.OUTPUT_DIR, self._last_written)
            put_back(trainer.storage, self._curves)
        if trainer.start_iter == 0:
            return
        trainer.iter = trainer.storage.iter = trainer.start_iter - 1
        if trainer.start_iter == trainer.max_iter:  # killed before or while saving model_final
            trainer.save_checkpoint(FINAL)
        for hook in trainer._hooks:
            if isinstance(hook, EvalHook | BestHook | PeriodicWriter):
                hook.after_step()


def take_up(trainer: Any, state: Mapping[str, Any], hooks: Sequence[HookBase] = ()) -> None:
    """Load a checkpoint's state into a trainer. Rates, decays and schedule come from the config.

    Args:
        trainer: a trainer with a hook ``continuity``.
        state: the trainer's ``state_dict``.
        hooks: the trainer's other hooks that have a state.

    Raises:
        UserError: when the checkpoint belongs to another training.
    """
    trainer.iter = trainer._trainer.iter = state["iteration"]
    saved, inner = state.get("hooks", {}), state["_trainer"]
    kept, now = (
        saved.get("Continuity", {}),
        parameter_names(unwrap(trainer.model), trainer.optimizer),
    )
    load_momenta(trainer.optimizer, inner["optimizer"], kept.get("parameters", now), now)
    set_schedule(trainer.scheduler, trainer.iter + 1)
    scaler, before = getattr(trainer._trainer, "grad_scaler", None), inner.get("grad_scaler")
    if scaler and before:
        scaler.load_state_dict(before)
    elif scaler or before:
        logging.getLogger("dpk_det").info(
            "SOLVER.AMP.ENABLED is %s and was %s before.", bool(scaler), bool(before)
        )
    for hook in hooks:
        if type(hook).__name__ in saved:
            hook.load_state_dict(saved[type(hook).__name__])
    trainer.continuity.load_state_dict(kept)


def _checksum(model: nn.Module) -> int:
    checksum = 0
    for value in model.state_dict().values():
        value = value.detach().cpu().contiguous().view(-1)
        checksum = zlib.crc32(value.view(torch.uint8).numpy(), checksum)
    return checksum
