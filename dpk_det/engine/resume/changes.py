"""What may change in the config of a training that is resumed."""

import re
from typing import Any

import yaml
from detectron2.config import CfgNode

from dpk_det.architectures import distils
from dpk_det.config.methods import comparable
from dpk_det.errors import UserError

# What does not influence how a training goes on, or is compared by what it leads to: the teacher's
# paths by its weights.
_FREE = re.compile(
    r"OUTPUT_DIR|VERSION|TRACKER\..*|VIS_PERIOD|CUDNN_BENCHMARK|FLOAT32_PRECISION|GLOBAL\..*|IMPORTS.*"
    r"|TEST\..*|DATASETS\.TEST|DATASETS\.(JSON|IMAGES)\..*|.*_TEST|MODEL\.PANOPTIC_FPN\.COMBINE\..*"
    r"|MODEL\.(WEIGHTS|BACKBONE_WEIGHTS|TIMM\.(PRETRAINED|WEIGHTS))"
    r"|DATALOADER\.NUM_WORKERS|SOLVER\.(CHECKPOINT_PERIOD|EMA_DECAY|REFERENCE_WORLD_SIZE)"
    r"|DISTILL\.TEACHER\.(CONFIG_FILE|WEIGHTS)"
)
# Of the model and of distillation, what changes no more than how losses are weighed and computed.
_LOOSE = re.compile(
    r"MODEL\.DEVICE|MODEL\..*LOSS_WEIGHT|DISTILL\.WARMUP_ITERS"
    r"|DISTILL\.TEACHER\.(PRECISION|CHANNELS_LAST|COMPILE)"
    r"|DISTILL\.\w+\.(WEIGHT|LEVEL_WEIGHTS|RPN_WEIGHT|ALPHA|BETA|GAMMA|LAMBDA_)"
)
_FIXED = re.compile(r"MODEL\..*|DISTILL\..*|SEED|INPUT\.FORMAT")
_FIRST = ("MODEL.META_ARCHITECTURE", "DISTILL.METHODS")  # what others follow from


def influential_changes(before: str, cfg: CfgNode, path: Any) -> list[str]:
    """The keys that make a resumed training go on otherwise than it was begun.

    Args:
        before: the config it was begun with, as YAML. cfg: the one it is resumed with.
        path: of the checkpoint, for the error.

    Raises:
        UserError: naming a key that cannot change, such as a width.
    """
    old, new = (comparable(yaml.safe_load(text)) for text in (before, cfg.dump()))
    changed = [
        # keys that came or went with a version of this project or of Detectron2 tell nothing
        key
        for key in sorted(old.keys() & new.keys(), key=lambda key: (key not in _FIRST, key))
        if old[key] != new[key] and not _FREE.fullmatch(key) and not _is_idle(key, cfg)
    ]
    for key in changed:
        if _FIXED.fullmatch(key) and not _LOOSE.fullmatch(key):
            raise UserError(
                f"{key} is {new[key]!r} but was {old[key]!r} when {path} was trained, and cannot "
                "change on the way: set it back, or train in another OUTPUT_DIR (MODEL.WEIGHTS can "
                "be that file)."
            )
    return changed


def _is_idle(key: str, cfg: CfgNode) -> bool:
    """Whether nothing reads a key: it is of distillation that is off, or of another method."""
    top, _, rest = key.partition(".")
    if top != "DISTILL" or rest == "INHERIT":
        return False
    if not distils(cfg):
        return True
    node = rest.partition(".")[0]
    is_method = isinstance(cfg.DISTILL.get(node), CfgNode) and node != "TEACHER"
    return is_method and node.lower() not in cfg.DISTILL.METHODS
