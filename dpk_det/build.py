"""Models from configs, and what is wrong with a config that gives none, in a sentence."""

import re

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    build_model,
)
from torch import nn

from dpk_det.errors import find, mistakes

_REGISTRIES = {
    registry._name: (registry, key)
    for registry, key in (
        (ANCHOR_GENERATOR_REGISTRY, "MODEL.ANCHOR_GENERATOR.NAME"),
        (BACKBONE_REGISTRY, "MODEL.BACKBONE.NAME"),
        (META_ARCH_REGISTRY, "MODEL.META_ARCHITECTURE"),
        (PROPOSAL_GENERATOR_REGISTRY, "MODEL.PROPOSAL_GENERATOR.NAME"),
        (ROI_BOX_HEAD_REGISTRY, "MODEL.ROI_BOX_HEAD.NAME"),
        (ROI_HEADS_REGISTRY, "MODEL.ROI_HEADS.NAME"),
        (ROI_KEYPOINT_HEAD_REGISTRY, "MODEL.ROI_KEYPOINT_HEAD.NAME"),
        (ROI_MASK_HEAD_REGISTRY, "MODEL.ROI_MASK_HEAD.NAME"),
        (RPN_HEAD_REGISTRY, "MODEL.RPN.HEAD_NAME"),
        (SEM_SEG_HEADS_REGISTRY, "MODEL.SEM_SEG_HEAD.NAME"),
    )
}


def build(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model``, with a sentence for what it raises.

    Raises:
        UserError: when the config describes no model: an unknown name (naming the nearest), or
            numbers that do not go together.
    """
    with mistakes(f"A {cfg.MODEL.META_ARCHITECTURE} like this cannot be built", "correct MODEL"):
        try:
            return build_model(cfg)
        except KeyError as e:
            unknown = re.search(r"No object named '(.*)' found in '(\w+)' registry", str(e))
            if unknown and unknown[2] in _REGISTRIES:
                registry, key = _REGISTRIES[unknown[2]]
                find(dict(registry), unknown[1], key)
            raise
