"""Meta-architectures: what a config's one is, and the model that it gives.

A distilling one is registered by :func:`dpk_det.modeling.register_distilled`, which leaves the name
of the plain one on it, in ``plain_name``. A classifier has ``takes_tensors = True``.
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
"""Key of a config that names a part of the model -> registry of such parts."""


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
            for key, registry in REGISTRIES.items():
                if unknown and registry._name == unknown[2]:
                    find(dict(registry), unknown[1], key)
            raise


def plain_name(name: str) -> str:
    """The meta-architecture that a distilling one trains; a plain or unknown name itself."""
    return getattr(_registered(name), "plain_name", name)


def distilling_names() -> dict[str, str]:
    """Name of each registered meta-architecture that distils to the plain one's."""
    return {name: plain_name(name) for name, _ in META_ARCH_REGISTRY if plain_name(name) != name}


def distils(cfg: CfgNode) -> bool:
    """Whether the model of a config learns from a teacher."""
    name = cfg.MODEL.META_ARCHITECTURE
    return plain_name(name) != name


def classifies(cfg: CfgNode) -> bool:
    """Whether the model of a config is a classifier of images, no detector."""
    return takes_tensors(_registered(plain_name(cfg.MODEL.META_ARCHITECTURE)))


def takes_tensors(model: Any) -> bool:
    """Whether a model, or its class, is a classifier, whose batch is one dict of tensors."""
    return getattr(model, "takes_tensors", False)


def plain_architecture(cfg: CfgNode) -> CfgNode:
    """A copy of a config whose model does not distil: for evaluation, export and teachers.

    All its weights are going to be loaded, so it starts from none of timm's.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = plain_name(cfg.MODEL.META_ARCHITECTURE)
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.WEIGHTS = False, ""
    return cfg


def _registered(name: str) -> Any:
    return META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
