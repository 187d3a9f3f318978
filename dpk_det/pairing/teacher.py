"""The frozen teacher: it has its own config and normalisation, and all its weights must match."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from dpk_det.architectures import build, plain_architecture
from dpk_det.checkpoint.loading import load_weights_strictly
from dpk_det.config.loading import check_pairs, load_config
from dpk_det.config.shipped import find_config
from dpk_det.distill import Features
from dpk_det.errors import UserError, find, mistakes
from dpk_det.pairing.batches import Batch, flip_channels
from dpk_det.pairing.modules import Layout, find_layouts, look
from dpk_det.pairing.preparing import preprocess

PRECISIONS = {"": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS_KEY = "DISTILL.TEACHER.WEIGHTS"
ZOO_EXAMPLE = "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"


class Teacher:
    """A frozen detector or classifier, in eval mode and without gradients.

    It is no ``nn.Module``, so that its weights do not become part of a student that holds it.

    Args:
        model: a Detectron2 model with a ``backbone``, and ``preprocess_image`` or at least
            ``pixel_mean`` and ``pixel_std``. It is frozen in place.
        image_format: channel order that the model was trained with, "BGR" or "RGB".
        student_format: channel order of the images that it will be given.
        precision: precision of the backbone: "bf16" or "fp16" (autocast); "": the student's.
        channels_last: keep the backbone's weights and maps with their channels innermost in memory.
        compiled: run the backbone through ``torch.compile``.

    Attributes:
        model: as given.
        student_format: as given.
        flip_channels: whether the two channel orders differ.
        layouts: layouts of the modules whose maps are returned beside the backbone's.

    Raises:
        UserError: for an unknown precision.
    """

    def __init__(
        self,
        model: nn.Module,
        image_format: str,
        student_format: str,
        *,
        precision: str = "",
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.student_format = student_format
        self.layouts: dict[str, Layout] = {}
        self.flip_channels = image_format != student_format
        self._dtype = find(PRECISIONS, precision, "precision (DISTILL.TEACHER.PRECISION)")
        # not a torch.memory_format, which torch.save() cannot pickle
        self._channels_last = channels_last
        if channels_last:
            model.backbone.to(memory_format=torch.channels_last)
        self._compiled = compiled
        # dynamic, because images may have any size
        self._look = torch.compile(model.backbone, dynamic=True) if compiled else model.backbone

    def move(self, device: torch.device) -> None:
        """Move to a device, unless the teacher is there already."""
        if next(self.model.parameters()).device != device:
            self.model.to(device)

    def look_at(self, paths: Sequence[str], lenient: bool = False) -> None:
        """Return the maps of these modules as well, from now on.

        Args:
            paths: paths of modules, such as "backbone.bottom_up.res4". The whole model has to run
                for a module outside the backbone.
            lenient: skip modules that return no map.

        Raises:
            UserError: when the backbone is compiled, and as
                :func:`~dpk_det.pairing.modules.find_layouts` does.
        """
        if paths and self._compiled:
            raise UserError(
                f"Within a compiled teacher {paths[0]} cannot be seen: set "
                "DISTILL.TEACHER.COMPILE to False."
            )
        for path in paths:
            try:
                self.layouts |= find_layouts(self.model, [path])
            except UserError:
                if not lenient:
                    raise

    @torch.no_grad()
    def __call__(self, batch: Batch, images: Tensor | None = None) -> Features:
        """Return the feature maps of a batch, normalised and padded in the teacher's own way.

        Only the backbone runs, unless a module outside it has to return a map.

        Args:
            batch: Detectron2's list of dicts, or a classifier's dict of tensors; images in the
                student's format.
            images: the batch as the teacher preprocesses it, (B, 3, H, W), if the caller has it;
                see :func:`prepare_alike`.
        """
        if self.flip_channels:
            batch = flip_channels(batch)
        if images is None:
            images = preprocess(self.model, batch).tensor
        if self._channels_last:
            images = images.to(memory_format=torch.channels_last)
        if self._dtype is None:
            return look(self.model, batch, self.layouts, images, self._look)
        with torch.autocast(images.device.type, self._dtype):
            seen = look(self.model, batch, self.layouts, images, self._look)
        seen.maps = {name: x.float() for name, x in seen.maps.items()}  # heads expect float32
        return seen


def load_teacher_config(config_file: str, opts: Sequence[Any] = ()) -> CfgNode | DictConfig:
    """Read a teacher's config from a path or Detectron2's model zoo.

    Args:
        config_file: YAML, or a LazyConfig's ``.py``, which is executed.
        opts: overrides, ``[KEY, VALUE, ...]``.

    Raises:
        UserError: when it is neither, a LazyConfig has no model, or opts are no pairs.
    """
    if not config_file:
        raise UserError(
            "DISTILL.TEACHER.CONFIG_FILE is empty: give it a path or a model zoo name "
            f"such as {ZOO_EXAMPLE}."
        )
    path = find_config(config_file)
    if not os.path.isfile(path):  # accepts any text, even a too long one or ~nobody/x
        try:
            path = _model_zoo().get_config_file(config_file)
        except RuntimeError as e:
            raise UserError(
                f"The teacher's config {config_file} is neither a file below {Path.cwd()} nor in "
                f"Detectron2's model zoo: give DISTILL.TEACHER.CONFIG_FILE a path or a name "
                f"such as {ZOO_EXAMPLE}."
            ) from e
    opts = [str(opt) for opt in opts]
    if not str(path).endswith(".py"):
        return load_config(str(path), opts)
    check_pairs(opts)
    overrides = [f"{key}={value}" for key, value in zip(opts[::2], opts[1::2], strict=True)]
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(path)), overrides)
    if "model" not in cfg:
        raise UserError(
            f"The teacher's LazyConfig {config_file} defines no 'model': give "
            "DISTILL.TEACHER.CONFIG_FILE one that does."
        )
    return cfg


def _model_zoo() -> ModuleType:
    # Imported late: upstream's zoo needs pkg_resources, and a teacher with a path does not.
    try:
        from detectron2 import model_zoo
    except ModuleNotFoundError as e:
        raise UserError(
            f"Detectron2's model zoo cannot be read ({e}): install 'setuptools<82', which has "
            "pkg_resources, or give DISTILL.TEACHER a config and weights by their paths."
        ) from e
    return model_zoo


def find_teacher_weights(config_file: str, weights: str, teacher_cfg: CfgNode | DictConfig) -> str:
    """Find the weights to load: those given, or the model zoo's, or those that training has left.

    A training with ``SOLVER.EMA_DECAY`` leaves the average that was evaluated.

    Raises:
        UserError: when none are given and none can be found.
    """
    if weights:
        return weights
    if not os.path.isfile(find_config(config_file)):
        try:
            return _model_zoo().get_checkpoint_url(config_file)
        except RuntimeError as e:
            raise UserError(
                f"Detectron2's model zoo has no weights for the teacher {config_file}: name them "
                "in DISTILL.TEACHER.WEIGHTS."
            ) from e
    if isinstance(teacher_cfg, DictConfig):
        folder, averages = OmegaConf.select(teacher_cfg, "train.output_dir", default="."), False
    else:
        folder, averages = teacher_cfg.OUTPUT_DIR, teacher_cfg.SOLVER.EMA_DECAY > 0
    # Other trainers average nothing, whatever the config says.
    final, average = Path(folder, "model_final.pth"), Path(folder, "model_ema.pth")
    trained = average if averages else final
    if final.is_file():  # the average alone may be that of a training that still runs
        return str(trained if trained.is_file() else final)
    raise UserError(
        f"The teacher {config_file} has no weights: train it (that leaves {trained}) or name them "
        "in DISTILL.TEACHER.WEIGHTS."
    )


def load_teacher(
    config_file: str,
    weights: str = "",
    opts: Sequence[Any] = (),
    device: str | torch.device = "cpu",
    student_format: str = "BGR",
    **speed: Any,
) -> Teacher:
    """Build a teacher from its own config and load its weights, which must all match.

    Args:
        config_file: a path, or a name of Detectron2's model zoo; YAML or a LazyConfig's ``.py``.
        weights: a path or URL; "": the weights that :func:`find_teacher_weights` finds.
        opts: overrides of its config, ``[KEY, VALUE, ...]``.
        device: the device to build it on. Later it follows the student to another device.
        student_format: channel order of the images that it will be given, "BGR" or "RGB".
        speed: arguments ``precision``, ``channels_last`` and ``compiled`` of :class:`Teacher`.

    Raises:
        UserError: when config or weights are not found, or a weight does not fit.
    """
    cfg = load_teacher_config(config_file, opts)
    weights = find_teacher_weights(config_file, weights, cfg)
    model, image_format = build_untrained(cfg, device)
    load_weights_strictly(model, weights, WEIGHTS_KEY)
    return Teacher(model, image_format, student_format, **speed)


def build_untrained(
    cfg: CfgNode | DictConfig, device: str | torch.device = "cpu"
) -> tuple[nn.Module, str]:
    """Build a teacher's model with random weights, and find the channel order of its images.

    Args:
        cfg: from :func:`load_teacher_config`.
        device: the device to build it on.
    """
    if isinstance(cfg, DictConfig):
        with mistakes("The teacher's LazyConfig gives no model", "correct its 'model'"):
            model = instantiate(cfg.model).to(device)
        # Only the model has it if the config wraps the model, as `distil` does. Models that do not
        # use it have none, such as Detectron2's FCOS.
        said = cfg.model.get("input_format") or getattr(model, "input_format", None)
        return model, said or "BGR"
    cfg = plain_architecture(cfg)  # a teacher may have been distilled itself
    cfg.MODEL.DEVICE = str(device)
    return build(cfg), cfg.INPUT.FORMAT


def build_teacher(cfg: CfgNode) -> Teacher:
    """Build the teacher that ``cfg.DISTILL.TEACHER`` describes, on the student's device.

    Args:
        cfg: the student's config.

    Raises:
        UserError: as :func:`load_teacher` does.
    """
    node = cfg.DISTILL.TEACHER
    return load_teacher(
        node.CONFIG_FILE,
        node.WEIGHTS,
        node.OPTS,
        cfg.MODEL.DEVICE,
        cfg.INPUT.FORMAT,
        precision=node.PRECISION,
        channels_last=node.CHANNELS_LAST,
        compiled=node.COMPILE,
    )
