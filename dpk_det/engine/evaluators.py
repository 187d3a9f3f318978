"""Choose the evaluators for a dataset by the ``evaluator_type`` in its metadata."""

import contextlib
import logging
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
    coco_evaluation,
)
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dpk_det.data.image_sets import EVALUATOR_TYPE
from dpk_det.engine.accuracy import AccuracyEvaluator
from dpk_det.errors import UserError

KINDS = (EVALUATOR_TYPE, "lvis", "pascal_voc", "sem_seg", "coco", "coco_panoptic_seg")
"""The ``evaluator_type`` values of datasets that can be evaluated."""


def check_evaluators(names: Iterable[str]) -> None:
    """Check that datasets have an evaluator, without building it.

    Raises:
        UserError: when a dataset has no evaluator, or needs a package that is not installed.
    """
    for name in names:
        kind = MetadataCatalog.get(name).get("evaluator_type")
        if kind not in KINDS:
            raise UserError(
                f"Dataset {name} has evaluator_type {kind!r}, which this trainer cannot "
                "evaluate: subclass DistillTrainer and override build_evaluator."
            )
        if kind == "lvis" and not find_spec("lvis"):
            raise UserError(
                f"The evaluation of {name} needs the package lvis: pip install lvis, or take the "
                "dataset out of DATASETS.TEST."
            )


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: str = "inference") -> DatasetEvaluator:
    """Build the evaluator of a dataset. It combines several evaluators if the type needs them.

    "coco" measures the boxes, masks and keypoints (with ``TEST.KEYPOINT_OKS_SIGMAS``) that the
    predictions have. "coco_panoptic_seg" adds "sem_seg" and the panoptic quality. The panoptic
    quality is left out with a warning if the package panopticapi is absent. "classification"
    measures the accuracy of classifiers.

    Args:
        cfg: the config. Its ``OUTPUT_DIR`` is where the predictions go.
        dataset_name: the dataset's registered name.
        folder: the subfolder of ``OUTPUT_DIR``.

    Raises:
        UserError: when no evaluator fits the dataset's type, or its package is not installed.
    """
    check_evaluators([dataset_name])
    folder = str(Path(cfg.OUTPUT_DIR) / folder)
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind == EVALUATOR_TYPE:
        return AccuracyEvaluator(DatasetCatalog.get(dataset_name).classes)
    if kind == "lvis":
        return LVISEvaluator(dataset_name, output_dir=folder)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    evaluators: list[DatasetEvaluator] = []
    if kind in ("sem_seg", "coco_panoptic_seg"):
        evaluators.append(SemSegEvaluator(dataset_name, output_dir=folder))
    if kind in ("coco", "coco_panoptic_seg"):
        _evaluate_fast()
        sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
        evaluators.append(COCOEvaluator(dataset_name, output_dir=folder, kpt_oks_sigmas=sigmas))
    if kind == "coco_panoptic_seg":
        if find_spec("panopticapi"):
            evaluators.append(COCOPanopticEvaluator(dataset_name, folder))
        else:
            logging.getLogger("dpk_det").warning(
                "The panoptic quality of %s is not measured: it needs the package panopticapi "
                "(github.com/cocodataset/panopticapi).",
                dataset_name,
            )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _evaluate_fast() -> None:
    # Without its C++ part, Detectron2 lacks its fast evaluation. faster_coco_eval then gives the
    # same figures as pycocotools in an eighth of the time (benchmarks/coco_eval.py).
    own = coco_evaluation.COCOeval
    if coco_evaluation.COCOeval_opt is own:
        with contextlib.suppress(ImportError):
            from faster_coco_eval import COCOeval_faster

            def evaluation(truth: COCO, found: COCO, kind: str) -> COCOeval:
                # For keypoints, COCOeval_faster needs a dataset class of its own package.
                slow = kind == "keypoints" or not _ids_fit_doubles(truth)
                return (own if slow else COCOeval_faster)(truth, found, kind)

            coco_evaluation.COCOeval_opt = evaluation


def _ids_fit_doubles(truth: COCO) -> bool:
    # COCOeval_faster turns the ids of images and categories into doubles
    return all(isinstance(x, int) and abs(x) <= 2**53 for x in (*truth.imgs, *truth.cats))
