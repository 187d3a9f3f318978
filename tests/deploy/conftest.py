"""Tiny detectors of every kind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

MASK = {
    "MODEL.MASK_ON": True,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 6,
}
ARCHITECTURES = {
    "faster": {},
    "mask": MASK,
    "keypoint": {
        "MODEL.KEYPOINT_ON": True,
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 3,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [8],
        "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 6,
    },
    "cascade": {
        "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    },
    # few candidates a level, for a trace must keep that limit where the example is below it
    "retinanet": {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.RETINANET.NUM_CLASSES": 2,
        "MODEL.RETINANET.IN_FEATURES": ["p2", "p3", "p4"],
        "MODEL.RETINANET.NUM_CONVS": 1,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 50,
    },
    "fcos": {
        "MODEL.META_ARCHITECTURE": "FCOS",
        "MODEL.FCOS.NUM_CLASSES": 2,
        "MODEL.FCOS.IN_FEATURES": ["p2", "p3", "p4"],
        "MODEL.FCOS.NUM_CONVS": 1,
        "MODEL.FCOS.SCORE_THRESH_TEST": 0.0,
        "MODEL.FCOS.TOPK_CANDIDATES_TEST": 50,
    },
    "panoptic": MASK
    | {
        "MODEL.META_ARCHITECTURE": "PanopticFPN",
        "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3", "p4"],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
        "MODEL.SEM_SEG_HEAD.NORM": "GN",
    },
}


@pytest.fixture(scope="session")
def variant(tiny, tmp_path_factory) -> Callable[..., tuple[Any, list[str], str]]:
    """``variant("mask")``: a tiny model of that kind, its overrides, and a file of its weights."""

    folder = tmp_path_factory.mktemp("variants")

    def make(kind: str) -> tuple[Any, list[str], str]:
        opts = [str(x) for pair in ARCHITECTURES[kind].items() for x in pair]
        model, path = tiny.build("plain", *opts).eval(), folder / f"{kind}.pth"
        if kind in ("retinanet", "fcos"):  # begins with nearly the same score everywhere
            model.head.cls_score.weight.data.mul_(50)
        torch.save({"model": model.state_dict()}, path)
        return model, opts, str(path)

    return make
