"""Runs plain models on one image after another: detectors and classifiers with one interface.

Each takes the plain model's config, a checkpoint that must fit completely, the classes (category id
-> name, in the model's order) and the least score of a finding (None: a default). ``find`` runs the
model on an image (H, W, 3) BGR. ``annotations`` gives the result in COCO's format, with the class's
number as ``category_id``. ``painter`` gives a function that draws the result.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from pycocotools import mask as mask_util

from dpk_det.architectures import build
from dpk_det.checkpoint.loading import load_weights_strictly
from dpk_det.data import fit_for_evaluation
from dpk_det.deploy.drawing import Painter, detection_painter, paint_classes
from dpk_det.errors import UserError, mistakes
from dpk_det.pairing.batches import flip_channels


class Detecting:
    """A detector. Detectron2's predictor prepares its images; the threshold filters instances."""

    what = "detections"

    def __init__(
        self, cfg: CfgNode, weights: str, names: dict[int, str], threshold: float | None
    ) -> None:
        self.threshold = 0.5 if threshold is None else threshold
        if cfg.DATASETS.TEST:
            self._metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        else:
            self._metadata = Metadata(thing_classes=list(names.values()))
        cfg.MODEL.WEIGHTS = ""  # the predictor would load weights that fit only in part
        with mistakes(
            f"A {cfg.MODEL.META_ARCHITECTURE} like this cannot be built", "correct MODEL"
        ):
            self._predictor = DefaultPredictor(cfg)
        load_weights_strictly(self._predictor.model, weights, "--weights")

    def find(self, image: np.ndarray) -> dict[str, Any]:
        """Return the model's outputs, with only the instances that reach the threshold."""
        outputs = self._predictor(image)
        if "instances" not in outputs:
            raise UserError(
                f"A {type(self._predictor.model).__name__} gives {', '.join(outputs)}, no "
                "instances: choose a detector."
            )
        instances = outputs["instances"].to("cpu")
        return {**outputs, "instances": instances[instances.scores >= self.threshold]}

    def annotations(self, outputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield detections as COCO annotations with a score; shifts their keypoints in place."""
        for found in instances_to_coco_json(outputs["instances"], 0):
            if "segmentation" in found:
                area = float(mask_util.area(found["segmentation"]))
            else:
                area = found["bbox"][2] * found["bbox"][3]
            yield {**found, "area": area, "iscrowd": 0}

    def painter(self) -> Painter:
        """Return a painter for an image, or for the frames of one video."""
        return detection_painter(self._metadata)


class Classifying:
    """A classifier, with images as in its evaluation. It finds the most likely classes."""

    what = "classes"
    most = 5

    def __init__(
        self, cfg: CfgNode, weights: str, names: dict[int, str], threshold: float | None
    ) -> None:
        self.threshold = threshold or 0.0
        self._names, self._flips = list(names.values()), cfg.INPUT.FORMAT == "BGR"
        self._fit = fit_for_evaluation(cfg)
        self._model = build(cfg).eval()
        load_weights_strictly(self._model, weights, "--weights")

    @torch.no_grad()
    def find(self, image: np.ndarray) -> list[tuple[int, float]]:
        """Return number and probability of the most likely classes that reach the threshold."""
        rgb = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)
        batch = {"images": self._fit(rgb).unsqueeze(0)}
        scores = self._model(flip_channels(batch) if self._flips else batch)[0].softmax(0)
        top = scores.topk(min(self.most, len(scores)))
        ranked = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [(number, score) for number, score in ranked if score >= self.threshold]

    def annotations(self, found: list[tuple[int, float]]) -> Iterator[dict[str, Any]]:
        """Yield classes as annotations with only category and score."""
        for number, score in found:
            yield {"image_id": 0, "category_id": number, "score": score}

    def painter(self) -> Painter:
        """Return a painter that writes lines of text."""
        return lambda image, found: paint_classes(
            image, [f"{self._names[number]} {score:.0%}" for number, score in found]
        )
