"""Pictures of what DPK does in a step: where the prior is given, and what the transformer makes."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from dpk_det.distill import Level
from dpk_det.distill.dpk.completion import HybridCompletion
from dpk_det.distill.dpk.distiller import DPK
from dpk_det.files import whole_file
from dpk_det.pairing.ddp import unwrap

FOLDER = "snapshots"
_SIDE = 320  # pixels of the image's longer side
_MOMENTS = (0.02, 0.5, 1.0)  # of a training


class SnapshotHook(HookBase):
    """Keeps the first image of three steps of a training with DPK, as ``snapshots/STEP.npz``.

    Each has ``image`` (H, W, 3) BGR and, for each level, ``NAME/given`` (h, w) bool, the tokens
    that took the prior; ``NAME/token``, a token's side in pixels of that image; ``NAME/ratio``;
    ``NAME/added``, how much the completed map differs from the student's (root mean square, over
    that of the student's, channels standardised; absent where there are other channels); and three
    maps of the level as colours (H, W, 3), see :func:`colours`: ``NAME/student``,
    ``NAME/completed``, ``NAME/teacher``. Padding is cut off. It only reads, so that the training is
    the same without it. The first rank alone does it.

    Args:
        rgb: whether images have that order of channels.
    """

    def __init__(self, rgb: bool) -> None:
        self._rgb = rgb
        self._handles: list[Any] = []
        self._image: Tensor | None = None
        self._seen: list[tuple[Level, int, float, dict[str, Tensor]]] = []

    def before_train(self) -> None:
        """Remove what an earlier training, or one of another length, has left."""
        if comm.is_main_process():
            for path in self._folder.glob("*.npz"):
                if path.stem not in map(str, self._moments) or int(path.stem) > self.trainer.iter:
                    path.unlink()

    def before_step(self) -> None:
        """Watch the step, if it is one of the three."""
        if self.trainer.iter + 1 not in self._moments or not comm.is_main_process():
            return
        model = unwrap(self.trainer.model)
        found = [module for module in model.modules() if isinstance(module, DPK)]
        if found:
            self._handles = [model.register_forward_pre_hook(self._see_image)]
        for dpk in found:
            for level in dpk.levels:
                completion = dpk.completions[level.student]
                self._handles.append(completion.register_forward_hook(partial(self._see, level)))

    def after_step(self) -> None:
        """Write what was seen, if it was; a training does not end because that fails."""
        for handle in self._handles:
            handle.remove()
        try:
            if self._seen:  # DISTILL.STOP_AT ends DPK before the training ends
                content = self._content(self._image, self._seen)
                with whole_file(self._folder / f"{self.trainer.iter + 1}.npz") as path:
                    np.savez_compressed(path, **content)
        except Exception as e:
            logging.getLogger("dpk_det").warning(
                "No snapshot of step %d (%s); the training goes on.", self.trainer.iter + 1, e
            )
        self._handles, self._seen, self._image = [], [], None

    @property
    def _folder(self) -> Path:
        return Path(self.trainer.cfg.OUTPUT_DIR) / FOLDER

    @property
    def _moments(self) -> set[int]:
        return {max(1, round(share * self.trainer.max_iter)) for share in _MOMENTS}

    def _see_image(self, model: Any, inputs: tuple[Any, ...]) -> None:
        batch = inputs[0]
        self._image = batch["images"][0] if isinstance(batch, Mapping) else batch[0]["image"]

    def _see(self, level: Level, module: HybridCompletion, inputs: Any, output: Any) -> None:
        # what is made of it is made after the step, where mixed precision is off
        maps = {"student": inputs[0], "completed": output[0], "teacher": inputs[1]}
        first = {what: x[0].detach() for what, x in (maps | {"given": output[1]}).items()}
        self._seen.append((level, module.patch, inputs[2], first))

    def _content(
        self, image: Tensor, seen: Sequence[tuple[Level, int, float, dict[str, Tensor]]]
    ) -> dict[str, np.ndarray]:
        size = tuple(image.shape[-2:])
        shown = image.permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        if self._rgb:
            shown = shown[:, :, ::-1]
        scale = min(1.0, _SIDE / max(size))
        small = tuple(max(1, round(scale * side)) for side in reversed(size))
        shown = np.ascontiguousarray(shown)
        content = {"image": cv2.resize(shown, small, interpolation=cv2.INTER_AREA)}
        for level, patch, ratio, maps in seen:
            name, token = level.student, patch * level.stride
            given = _cut(maps.pop("given"), token, size)
            first = {what: _cut(x.float(), level.stride, size) for what, x in maps.items()}
            basis = principal_axes(first["teacher"])
            if len(first["student"]) == len(first["completed"]):
                own, made = (_standard(first[what]) for what in ("student", "completed"))
                added = (made - own).square().mean().sqrt() / own.square().mean().sqrt()
                content[f"{name}/added"] = np.float32(added.cpu())
            for what, x in first.items():
                # a student of other channels has axes of its own
                axes = basis if len(x) == len(basis) else principal_axes(x)
                content[f"{name}/{what}"] = colours(x, axes)
            content[f"{name}/given"] = given.cpu().numpy()
            content[f"{name}/token"] = np.float32(token * scale)
            content[f"{name}/ratio"] = np.float32(ratio)
        return content


def _cut(x: Tensor, cell: int, size: Sequence[int]) -> Tensor:
    """What of a map is no padding."""
    height, width = (-(-side // cell) for side in size)
    return x[..., :height, :width]


def principal_axes(x: Tensor) -> Tensor:
    """The three directions of channels along which a map varies most.

    Args:
        x: (C, H, W).

    Returns:
        (C, 3); columns are zero where there are fewer.
    """
    flat = _standard(x).double().cpu()  # which always converges
    _, vectors = torch.linalg.eigh(flat @ flat.T)
    axes = vectors.flip(1)[:, :3].to(x)
    axes = axes * torch.where(axes.sum(0) < 0, -1.0, 1.0)  # a sign of its own each
    return torch.nn.functional.pad(axes, (0, 3 - axes.shape[1]))


def colours(x: Tensor, axes: Tensor) -> np.ndarray:
    """A map as a picture: what its channels, each standardised, are along three axes.

    Args:
        x: (C, H, W). axes: (C, 3).

    Returns:
        (H, W, 3) uint8; middle grey is the mean, and two deviations reach the ends.
    """
    along = axes.T @ _standard(x)
    spread = along.std(1, keepdim=True, correction=0).clamp(min=1e-6)
    shown = (along / spread / 4 + 0.5).clamp(0, 1) * 255
    return shown.round().byte().T.unflatten(0, x.shape[1:]).cpu().numpy()


def _standard(x: Tensor) -> Tensor:
    flat = x.flatten(1).nan_to_num(0, 0, 0)  # of a training that is about to fail
    centred = flat - flat.mean(1, keepdim=True)
    return centred / centred.std(1, keepdim=True, correction=0).clamp(min=1e-6)
