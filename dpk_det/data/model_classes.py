"""Properties of a config's model that its datasets must fit."""

from detectron2.config import CfgNode

from dpk_det.architectures import classifies, plain_name

# End of a detector's plain name -> node with its number of classes. Only the end counts, so that
# detectors of other projects are found too.
_CLASS_COUNTS = {
    "RCNN": "ROI_HEADS",
    "PanopticFPN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
    "FCOS": "FCOS",
}
# Ends of the plain names of models that segment. They need the pixels' classes.
_SEGMENT = ("PanopticFPN", "SemanticSegmentor")


def segments(cfg: CfgNode) -> bool:
    """Return whether the model of ``cfg`` gives every pixel a class."""
    return plain_name(cfg.MODEL.META_ARCHITECTURE).endswith(_SEGMENT)


def num_classes(cfg: CfgNode) -> int | None:
    """Return the number of classes of the head of ``cfg.MODEL``; None if it is unknown."""
    key = class_count_key(cfg)
    return None if key is None else cfg.MODEL[key].NUM_CLASSES


def class_count_key(cfg: CfgNode) -> str | None:
    """Return the name of the node of ``cfg.MODEL`` that has ``NUM_CLASSES``; None if unknown."""
    if classifies(cfg):
        return "CLASSIFIER"
    for ending, key in _CLASS_COUNTS.items():
        if plain_name(cfg.MODEL.META_ARCHITECTURE).endswith(
            ending
        ) and "NUM_CLASSES" in cfg.MODEL.get(key, {}):
            return key
    return None
