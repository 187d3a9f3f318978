"""Meta-architectures: which kind a config names, and how its model is built.

:func:`dpk_det.modeling.register_distilled` registers a distilling meta-architecture and stores the
name of the plain one in its ``plain_name``. A classifier has ``takes_tensors = True``.
"""

import re
from typing import Any

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

REGISTRIES = {
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
"""Config key that names a part of the model -> registry of these parts."""


def build(cfg: CfgNode) -> nn.Module:
    """Call Detectron2's ``build_model``, and turn what it raises into a sentence.

    Raises:
        UserError: if the config has an unknown name (the error names the nearest one), or numbers
            that do not fit together.
    """
    with mistakes(f"A {cfg.MODEL.META_ARCHITECTURE} like this cannot be built", "correct MODEL"):
        try:
            return build_model(cfg)
        except KeyError as e:
            unknown = re.search(r"No object named '(.*)' found in '(\w+)' registry", str(e))
            for key, registry in REGISTRIES.items():
                if unknown and registry._name == unknown[2]:
                    find(dict(registry), unknown[1], key)
            raise


def plain_name(name: str) -> str:
    """Return the plain twin of a distilling meta-architecture; other names stay unchanged."""
    return getattr(_registered(name), "plain_name", name)


def distilling_names() -> dict[str, str]:
    """Return each registered distilling meta-architecture -> its plain twin, by name."""
    return {name: plain_name(name) for name, _ in META_ARCH_REGISTRY if plain_name(name) != name}


def distils(cfg: CfgNode) -> bool:
    """Whether the model of a config learns from a teacher."""
    name = cfg.MODEL.META_ARCHITECTURE
    return plain_name(name) != name


def classifies(cfg: CfgNode) -> bool:
    """Whether the model of a config is an image classifier, not a detector."""
    return takes_tensors(_registered(plain_name(cfg.MODEL.META_ARCHITECTURE)))


def takes_tensors(model: Any) -> bool:
    """Whether a model or class is a classifier. Its batch is one dict of tensors."""
    return getattr(model, "takes_tensors", False)


def plain_architecture(cfg: CfgNode) -> CfgNode:
    """Copy a config and make its model plain: for evaluation, export and teachers.

    The copy loads none of timm's weights, because a checkpoint provides all weights.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = plain_name(cfg.MODEL.META_ARCHITECTURE)
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.WEIGHTS = False, ""
    return cfg


def _registered(name: str) -> Any:
    return META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
