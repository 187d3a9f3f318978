"""What a config's model is, as far as its data have to fit it."""

from detectron2.config import CfgNode

from dpk_det.architectures import classifies, plain_name

# Where a detector keeps its number of classes, by the end of its plain name, so that this holds for
# those of other projects too.
_CLASS_COUNTS = {
    "RCNN": "ROI_HEADS",
    "PanopticFPN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
    "FCOS": "FCOS",
}
# That segment, too: they need the pixels' classes.
_SEGMENT = ("PanopticFPN", "SemanticSegmentor")


def segments(cfg: CfgNode) -> bool:
    """Return whether the model of ``cfg`` gives every pixel a class."""
    return plain_name(cfg.MODEL.META_ARCHITECTURE).endswith(_SEGMENT)


def num_classes(cfg: CfgNode) -> int | None:
    """Return the number of classes of the head of ``cfg.MODEL``; None where it is not known."""
    key = class_count_key(cfg)
    return None if key is None else cfg.MODEL[key].NUM_CLASSES


def class_count_key(cfg: CfgNode) -> str | None:
    """Return the node of ``cfg.MODEL`` that has ``NUM_CLASSES``; None where it is not known."""
    if classifies(cfg):
        return "CLASSIFIER"
    for ending, key in _CLASS_COUNTS.items():
        if plain_name(cfg.MODEL.META_ARCHITECTURE).endswith(
            ending
        ) and "NUM_CLASSES" in cfg.MODEL.get(key, {}):
            return key
    return None
