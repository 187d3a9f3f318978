"""Meta-architectures for configs: build the plain one, attach.

They are functions, which Detectron2's registry calls like classes: what comes back is an instance
of the plain class, and its weights have the plain names.
"""

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

from dpk_det.attach import attach_from_config


@META_ARCH_REGISTRY.register()
def DistillRCNN(cfg: CfgNode) -> GeneralizedRCNN:
    """Faster, Mask, Keypoint or Cascade R-CNN that learns from ``cfg.DISTILL.TEACHER``."""
    return attach_from_config(GeneralizedRCNN(cfg), cfg)
