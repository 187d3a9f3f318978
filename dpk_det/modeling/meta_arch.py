"""Meta-architectures for configs: build the plain one, attach.

They are functions, which Detectron2's registry calls like classes: what comes back is an instance
of the plain class, and its weights have the plain names.
"""

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

from dpk_det.attach import distil

# distilling architecture -> the plain one that it trains
PLAIN = {"DistillRCNN": "GeneralizedRCNN"}


@META_ARCH_REGISTRY.register()
def DistillRCNN(cfg: CfgNode) -> GeneralizedRCNN:
    """Faster, Mask, Keypoint or Cascade R-CNN that learns from ``cfg.DISTILL.TEACHER``."""
    return distil(GeneralizedRCNN(cfg), cfg)


def plain_architecture(cfg: CfgNode) -> CfgNode:
    """A copy of a config whose model does not distil, for evaluation and export: no teacher."""
    cfg = cfg.clone()
    cfg.defrost()
    name = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = PLAIN.get(name, name)
    return cfg
