"""Evaluate a teacher on the datasets that its student is evaluated on."""

import hashlib
import os
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from dpk_det.architectures import plain_architecture
from dpk_det.data import check_datasets
from dpk_det.engine.results import count_parameters, write_results
from dpk_det.engine.trainer import DistillTrainer
from dpk_det.errors import UserError
from dpk_det.pairing.teacher import find_teacher_weights, load_teacher, load_teacher_config

TEACHER_RESULTS = "teacher.json"
# The keys under which Detectron2's LazyConfigs hold the number of classes.
_CLASS_COUNTS = ("model.num_classes", "model.roi_heads.num_classes", "model.head.num_classes")


def evaluate_teacher(cfg: CfgNode) -> dict[str, Any]:
    """Evaluate the teacher of a student on the student's ``DATASETS.TEST``.

    Images are resized and normalised as the teacher's config says. If that is a LazyConfig, they
    are resized as for the student. The teacher runs in float32. The figures are written to
    ``OUTPUT_DIR/teacher.json``; the evaluators' own files go to ``OUTPUT_DIR/teacher``.

    Args:
        cfg: the student's config, with registered datasets.

    Raises:
        UserError: when the teacher cannot be built, or has other classes than the datasets.
    """
    node = cfg.DISTILL.TEACHER
    test_cfg = evaluation_config(cfg)
    teacher = load_teacher(
        node.CONFIG_FILE, node.WEIGHTS, node.OPTS, cfg.MODEL.DEVICE, cfg.INPUT.FORMAT
    )
    test_cfg.INPUT.FORMAT = cfg.INPUT.FORMAT
    if teacher.flip_channels:
        test_cfg.INPUT.FORMAT = "RGB" if cfg.INPUT.FORMAT == "BGR" else "BGR"
    results = DistillTrainer.test(test_cfg, teacher.model)
    if comm.is_main_process():
        write_results(
            Path(cfg.OUTPUT_DIR) / TEACHER_RESULTS,
            {
                "teacher": describe_teacher(cfg),
                "parameters": count_parameters(teacher.model),
                "results": results,
            },
        )
    return results


def evaluation_config(cfg: CfgNode) -> CfgNode:
    """Return the config for the evaluation of a student's teacher.

    Raises:
        UserError: when the teacher has no config, when ``DATASETS.TEST`` is empty, or when the
            teacher has other classes than those datasets.
    """
    node = cfg.DISTILL.TEACHER
    teacher_cfg = load_teacher_config(node.CONFIG_FILE, node.OPTS)
    is_lazy = isinstance(teacher_cfg, DictConfig)
    result = plain_architecture(cfg if is_lazy else teacher_cfg)
    result.MODEL.DEVICE = cfg.MODEL.DEVICE
    result.DATASETS = cfg.DATASETS.clone()
    result.DATASETS.defrost()
    # Detectron2 reads the keypoints' names from DATASETS.TRAIN.
    result.DATASETS.TRAIN = cfg.DATASETS.TEST if result.MODEL.KEYPOINT_ON else ()
    result.DATALOADER.NUM_WORKERS = cfg.DATALOADER.NUM_WORKERS
    result.TEST.KEYPOINT_OKS_SIGMAS = cfg.TEST.KEYPOINT_OKS_SIGMAS
    result.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / "teacher")
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name the datasets to evaluate the teacher on.")
    try:
        check_datasets(result)
        if is_lazy:
            _check_lazy_classes(teacher_cfg, cfg.DATASETS.TEST)
    except UserError as e:
        raise UserError(
            f"The teacher {node.CONFIG_FILE} cannot be evaluated on the student's DATASETS.TEST: "
            f"{e}"
        ) from e
    return result


def describe_teacher(cfg: CfgNode, any_machine: bool = False) -> dict[str, Any]:
    """Describe everything that the figures of a student's teacher depend on.

    These are its config, its weights and the datasets. Equal descriptions mean equal figures. A
    file of weights is described by its path and its modification time.

    Args:
        cfg: the student's config.
        any_machine: leave out the weights, which then need not be on this machine.

    Raises:
        UserError: when config or weights are not found.
    """
    node = cfg.DISTILL.TEACHER
    teacher_cfg = load_teacher_config(node.CONFIG_FILE, node.OPTS)
    if isinstance(teacher_cfg, DictConfig):
        text = OmegaConf.to_yaml(teacher_cfg.model)
    else:
        plain = plain_architecture(teacher_cfg)
        plain.MODEL.DEVICE = plain.MODEL.WEIGHTS = ""
        text = plain.MODEL.dump() + plain.INPUT.dump() + plain.TEST.dump()
    found = {
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "datasets": list(cfg.DATASETS.TEST),
    }
    if any_machine:
        return found
    weights = find_teacher_weights(node.CONFIG_FILE, node.WEIGHTS, teacher_cfg)
    path = Path(os.path.expanduser(weights))
    is_file = os.path.isfile(path)
    return found | {
        "weights": str(path.absolute()) if is_file else weights,
        "modified": path.stat().st_mtime_ns if is_file else None,
    }


def _check_lazy_classes(teacher_cfg: DictConfig, datasets: list[str]) -> None:
    counts = (OmegaConf.select(teacher_cfg, key) for key in _CLASS_COUNTS)
    expected = next((count for count in counts if isinstance(count, int)), None)
    for name in datasets:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if expected is not None and classes is not None and len(classes) != expected:
            raise UserError(
                f"it has {expected} classes but dataset {name} has {len(classes)}: evaluate it "
                "elsewhere."
            )
