"""Snapshots of DPK in a step: the tokens that take the prior, and the transformer's output."""

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
_MOMENTS = (0.02, 0.5, 1.0)  # shares of a training


class SnapshotHook(HookBase):
    """Saves the first image of three steps of a training with DPK, as ``snapshots/STEP.npz``.

    A file has ``image`` (H, W, 3) BGR and these entries for each level:

    - ``NAME/given`` (h, w) bool: the tokens that took the prior.
    - ``NAME/token``: the side of a token in pixels of that image.
    - ``NAME/ratio``: the prior ratio.
    - ``NAME/added``: the root mean square difference of the completed and the student's map,
      relative to the student's, channels standardised; absent if their channels differ in number.
    - ``NAME/student``, ``NAME/completed``, ``NAME/teacher``: the maps as colours (H, W, 3), see
      :func:`colours`.

    Padding is cut off. The hook only reads, so the training is the same without it. Only the first
    rank saves.

    Args:
        rgb: whether the channel order of the images is RGB.
    """

    def __init__(self, rgb: bool) -> None:
        self._rgb = rgb
        self._handles: list[Any] = []
        self._image: Tensor | None = None
        self._seen: list[tuple[Level, int, float, dict[str, Tensor]]] = []

    def before_train(self) -> None:
        """Remove files of an earlier training or of a training with another length."""
        if comm.is_main_process():
            for path in self._folder.glob("*.npz"):
                if path.stem not in map(str, self._moments) or int(path.stem) > self.trainer.iter:
                    path.unlink()

    def before_step(self) -> None:
        """Watch the step if it is one of the three."""
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
        """Write the snapshot of a watched step. If that fails, the training continues."""
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
        # The content is computed after the step, because mixed precision is off there.
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
                # A map with another number of channels needs its own axes.
                axes = basis if len(x) == len(basis) else principal_axes(x)
                content[f"{name}/{what}"] = colours(x, axes)
            content[f"{name}/given"] = given.cpu().numpy()
            content[f"{name}/token"] = np.float32(token * scale)
            content[f"{name}/ratio"] = np.float32(ratio)
        return content


def _cut(x: Tensor, cell: int, size: Sequence[int]) -> Tensor:
    """Cut the padding off a map."""
    height, width = (-(-side // cell) for side in size)
    return x[..., :height, :width]


def principal_axes(x: Tensor) -> Tensor:
    """Return the three directions in channel space along which a map varies most.

    Args:
        x: (C, H, W).

    Returns:
        (C, 3); missing directions are zero columns.
    """
    flat = _standard(x).double().cpu()  # eigh() always converges in float64 on the CPU
    _, vectors = torch.linalg.eigh(flat @ flat.T)
    axes = vectors.flip(1)[:, :3].to(x)
    axes = axes * torch.where(axes.sum(0) < 0, -1.0, 1.0)  # fix the arbitrary sign of each axis
    return torch.nn.functional.pad(axes, (0, 3 - axes.shape[1]))


def colours(x: Tensor, axes: Tensor) -> np.ndarray:
    """Turn a map into a picture: standardise its channels and project them onto three axes.

    Args:
        x: (C, H, W).
        axes: (C, 3).

    Returns:
        (H, W, 3) uint8. The mean is middle grey; two standard deviations reach 0 and 255.
    """
    along = axes.T @ _standard(x)
    spread = along.std(1, keepdim=True, correction=0).clamp(min=1e-6)
    shown = (along / spread / 4 + 0.5).clamp(0, 1) * 255
    return shown.round().byte().T.unflatten(0, x.shape[1:]).cpu().numpy()


def _standard(x: Tensor) -> Tensor:
    flat = x.flatten(1).nan_to_num(0, 0, 0)  # a training that is about to fail may have NaN
    centred = flat - flat.mean(1, keepdim=True)
    return centred / centred.std(1, keepdim=True, correction=0).clamp(min=1e-6)
