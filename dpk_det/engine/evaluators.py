"""Which of Detectron2's evaluators measure a dataset, by its metadata's ``evaluator_type``."""

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
"""Of datasets that can be evaluated: their ``evaluator_type``."""


def check_evaluators(names: Iterable[str]) -> None:
    """Check that datasets have an evaluator, without building it.

    Raises:
        UserError: when one has none, or needs a package that is not installed.
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
    """The evaluator of a dataset; of several kinds of figures, all of them as one.

    "coco" measures what the predictions have: boxes, masks, keypoints (with
    ``TEST.KEYPOINT_OKS_SIGMAS``). "coco_panoptic_seg" measures these, "sem_seg" and the panoptic
    quality; the last needs the package panopticapi, and is left out with a warning where that is
    absent. "classification" measures accuracy, of datasets for classifiers.

    Args:
        cfg: says where the predictions go, ``OUTPUT_DIR``. dataset_name: as registered.
        folder: below it.

    Raises:
        UserError: when there is none for the dataset's type.
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
    # Detectron2's own evaluation in C++ is absent where only its Python part is installed. This has
    # the same figures in an eighth of the time: benchmarks/coco_eval.py
    own = coco_evaluation.COCOeval
    if coco_evaluation.COCOeval_opt is own:
        with contextlib.suppress(ImportError):
            from faster_coco_eval import COCOeval_faster

            def evaluation(truth: COCO, found: COCO, kind: str) -> COCOeval:
                # of keypoints it wants datasets of its own
                return (own if kind == "keypoints" else COCOeval_faster)(truth, found, kind)

            coco_evaluation.COCOeval_opt = evaluation
