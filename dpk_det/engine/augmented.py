"""Detectron2's test-time augmentation, ``TEST.AUG``: after a training, and with --eval-only."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    GeneralizedRCNNWithTTA,
    PanopticFPN,
)
from torch import nn

from dpk_det.architectures import plain_name
from dpk_det.engine.evaluators import build_evaluator
from dpk_det.errors import UserError

FOLDER = "inference_TTA"
"""Subfolder of ``OUTPUT_DIR`` for the predictions."""


def check_augmented(cfg: CfgNode) -> None:
    """Check that the model of ``cfg`` supports test-time augmentation, if TEST.AUG.ENABLED is set.

    Raises:
        UserError: when it does not. Detectron2 supports only R-CNNs with boxes and masks.
    """
    if not cfg.TEST.AUG.ENABLED:
        return
    name = plain_name(cfg.MODEL.META_ARCHITECTURE)
    kind = META_ARCH_REGISTRY.get(name)
    is_rcnn = isinstance(kind, type) and issubclass(kind, GeneralizedRCNN)
    what = ""
    if not is_rcnn or issubclass(kind, PanopticFPN):
        what = f"a {name}"
    elif cfg.MODEL.KEYPOINT_ON:
        what = "keypoints (MODEL.KEYPOINT_ON)"
    elif cfg.MODEL.LOAD_PROPOSALS:
        what = "proposals from files (MODEL.LOAD_PROPOSALS)"
    if what:
        raise UserError(
            "TEST.AUG.ENABLED is for R-CNNs of boxes and masks, because Detectron2's test-time "
            f"augmentation cannot take {what}: set it to False."
        )


def test_augmented(
    cfg: CfgNode, model: nn.Module, test: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """Evaluate with test-time augmentation, as Detectron2's ``tools/train_net.py`` does.

    Args:
        cfg: ``TEST.AUG`` sets the augmentation. Predictions go to ``OUTPUT_DIR/inference_TTA``.
        model: a plain or distilling R-CNN.
        test: :meth:`DistillTrainer.test`.

    Returns:
        The results, with ``_TTA`` at the end of their names.
    """
    evaluators = [build_evaluator(cfg, name, FOLDER) for name in cfg.DATASETS.TEST]
    results = test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
    return {f"{name}_TTA": figures for name, figures in results.items()}


test_augmented.__test__ = False  # the name starts with test_, but pytest must not collect it
