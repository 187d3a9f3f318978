"""The checkpoints of a training: write them whole, and find a whole one among damaged files."""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from dpk_det.errors import UserError
from dpk_det.files import whole_file, write_whole

FINAL = "model_final"
_NAME = re.compile(r"model_(final|\d+)\.pth")
_LAST = "last_checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that a training can resume from.

    Attributes:
        path: the path of the file.
        step: the number of completed steps.
        config: the config of the run, as YAML; None in files of older versions.
        skipped: a sentence on each damaged file that was found.
    """

    path: Path
    step: int
    config: str | None
    skipped: tuple[str, ...] = ()


class TrainingCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer. Its files are complete or absent, and weights must fit."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write the model and its training to ``name.pth``, then put the name in last_checkpoint.

        Raises:
            UserError: when the disk is full.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        entries = {key: value.state_dict() for key, value in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        with whole_file(path) as partial:
            _save({"model": self.model.state_dict(), **entries, **kwargs}, partial)
        self.tag_last_checkpoint(path.name)

    def save_weights(self, name: str, model: nn.Module) -> None:
        """Write only a model's weights to ``name.pth``. A training cannot resume from this file.

        Raises:
            UserError: when the disk is full.
        """
        if self.save_dir and self.save_to_disk:
            with whole_file(Path(self.save_dir) / f"{name}.pth") as partial:
                _save({"model": model.state_dict()}, partial)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the last checkpoint to ``last_checkpoint``."""
        write_whole(Path(self.save_dir) / _LAST, last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return torch.load(filename, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        found = super()._load_model(checkpoint)
        wrong = [name for name, *_ in found.incorrect_shapes]
        names = list(dict.fromkeys([*wrong, *found.missing_keys, *found.unexpected_keys]))
        if names:
            raise UserError(
                f"The last checkpoint in {self.save_dir} is of another model ({len(names)} weights "
                f"do not fit, {', '.join(names[:3])}): resume with the config that it was trained "
                "with, or choose another OUTPUT_DIR."
            )
        return found


def _save(content: Any, path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as e:  # torch's writer hides the OSError behind a wrong position
        if isinstance(e.__context__, OSError):
            raise e.__context__ from None
        raise


def checkpoint_files(folder: str | Path) -> list[Path]:
    """List the checkpoints in a folder, whole or not."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def last_checkpoint(folder: str | Path, to_train: bool = True) -> Checkpoint | None:
    """Find the checkpoint that last_checkpoint names. If it is damaged, find the newest whole one.

    Args:
        folder: the OUTPUT_DIR of the training.
        to_train: False if the checkpoint is only evaluated. Weights are enough then.

    Returns:
        The checkpoint, or None if the folder has no checkpoint.

    Raises:
        UserError: when no checkpoint is whole.
    """
    files = checkpoint_files(folder)
    if not files:
        return None
    skipped = []
    named = _named(Path(folder), skipped)
    found = {}
    for path in files:
        try:
            found[path] = _look(path, to_train)
        except ValueError as e:
            skipped.append(f"{path} is skipped, because {e}.")
    # The named file comes first, then the newest step. At equal steps, the final model comes first.
    order = sorted(
        found, key=lambda path: (path == named, found[path].step, path.name), reverse=True
    )
    for path in order:
        if _is_intact(path):
            return replace(found[path], skipped=tuple(skipped))
        skipped.append(
            f"{path} is skipped, because its contents do not agree with their checksums."
        )
    raise UserError(
        f"No checkpoint in {folder} is whole: {' '.join(skipped)} Remove them to start anew, or "
        "choose another OUTPUT_DIR."
    )


def _named(folder: Path, skipped: list[str]) -> Path | None:
    """Return the file that last_checkpoint names. If it names none, add a sentence to skipped."""
    try:
        name = (folder / _LAST).read_text().strip()
    except FileNotFoundError:
        name = None
    except (OSError, UnicodeDecodeError):
        name = ""
    if name and _NAME.fullmatch(name) and (folder / name).is_file():
        return folder / name
    what = "is absent" if name is None else "names no file that is there"
    skipped.append(f"{folder / _LAST} {what}: the newest whole checkpoint is taken.")
    return None


def _look(path: Path, to_train: bool) -> Checkpoint:
    """Read the description of a checkpoint. Its tensors stay on disk if the format allows it.

    Raises:
        ValueError: when the file cannot be used. The text says why, to follow "because".
    """
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as e:  # damaged files raise errors of every kind
        raise ValueError(f"it cannot be read ({type(e).__name__})") from e
    step = _within(content, "trainer", "iteration")
    if not isinstance(_within(content, "model"), Mapping):
        raise ValueError("it holds no model")
    if to_train and not isinstance(step, int):
        raise ValueError("it does not say which step it is of")
    if to_train and not isinstance(_within(content, "trainer", "_trainer", "optimizer"), Mapping):
        raise ValueError("it lacks the optimizer's state")
    if not isinstance(step, int):
        step = content.get("iteration", -1)
    return Checkpoint(path, step + 1, _within(content, "trainer", "hooks", "Continuity", "config"))


def _within(content: Any, *keys: str) -> Any:
    """Return the value under nested keys, or None if there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _is_intact(path: Path) -> bool:
    """Whether a file's contents match their checksums. torch itself does not compare them."""
    if not zipfile.is_zipfile(path):
        return True  # torch before 1.6 stored no checksums
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # damage to the directory of the archive raises errors of every kind
        return False
