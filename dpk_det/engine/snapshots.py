"""Pictures of what DPK does in a step: where the prior is given, and what the transformer makes."""

from collections.abc import Mapping
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
        self._content: dict[str, np.ndarray] = {}

    def before_step(self) -> None:
        """Watch the step, if it is one of the three."""
        last = self.trainer.max_iter
        moments = {max(1, round(share * last)) for share in _MOMENTS}
        if self.trainer.iter + 1 not in moments or not comm.is_main_process():
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
        """Write what was seen."""
        for handle in self._handles:
            handle.remove()
        if self._content:
            folder = Path(self.trainer.cfg.OUTPUT_DIR) / FOLDER
            with whole_file(folder / f"{self.trainer.iter + 1}.npz") as path:
                np.savez_compressed(path, **self._content)
        self._handles, self._content = [], {}

    def _see_image(self, model: Any, inputs: tuple[Any, ...]) -> None:
        batch = inputs[0]
        image = batch["images"][0] if isinstance(batch, Mapping) else batch[0]["image"]
        self._size = tuple(image.shape[-2:])
        shown = image.permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        if self._rgb:
            shown = shown[:, :, ::-1]
        self._scale = scale = min(1.0, _SIDE / max(self._size))
        self._content["image"] = cv2.resize(
            np.ascontiguousarray(shown), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
        )

    @torch.no_grad()
    def _see(self, level: Level, module: HybridCompletion, inputs: Any, output: Any) -> None:
        name, stride = level.student, level.stride
        student, teacher, ratio = inputs[:3]
        completed, given = output

        def cut(x: Tensor, cell: int) -> Tensor:
            height, width = (-(-side // cell) for side in self._size)
            return x[..., :height, :width]

        maps = {"student": student, "completed": completed, "teacher": teacher}
        first = {what: cut(x[0].float(), stride) for what, x in maps.items()}
        basis = principal_axes(first["teacher"])
        if student.shape[1] == completed.shape[1]:
            own, made = (_standard(first[what]) for what in ("student", "completed"))
            added = (made - own).square().mean().sqrt() / own.square().mean().sqrt()
            self._content[f"{name}/added"] = np.float32(added.cpu())
        for what, x in first.items():
            # a student of other channels has axes of its own
            axes = basis if len(x) == len(basis) else principal_axes(x)
            self._content[f"{name}/{what}"] = colours(x, axes)
        token = stride * module.patch
        self._content[f"{name}/given"] = cut(given[0], token).cpu().numpy()
        self._content[f"{name}/token"] = np.float32(token * self._scale)
        self._content[f"{name}/ratio"] = np.float32(ratio)


def principal_axes(x: Tensor) -> Tensor:
    """The three directions of channels along which a map varies most.

    Args:
        x: (C, H, W).

    Returns:
        (C, 3); columns are zero where there are fewer.
    """
    flat = _standard(x)
    _, vectors = torch.linalg.eigh(flat @ flat.T)
    axes = vectors.flip(1)[:, :3]
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
