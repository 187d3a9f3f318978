"""Which config keys may change when a training is resumed."""

import re
from typing import Any

import yaml
from detectron2.config import CfgNode

from dpk_det.architectures import distils
from dpk_det.config.methods import comparable
from dpk_det.errors import UserError

# These keys do not influence a resumed training, or their effect is compared instead: the teacher's
# weights are compared, not their paths.
_FREE = re.compile(
    r"OUTPUT_DIR|VERSION|TRACKER\..*|VIS_PERIOD|CUDNN_BENCHMARK|FLOAT32_PRECISION|GLOBAL\..*|IMPORTS.*"
    r"|TEST\..*|DATASETS\.TEST|DATASETS\.(JSON|IMAGES)\..*|.*_TEST|MODEL\.PANOPTIC_FPN\.COMBINE\..*"
    r"|MODEL\.(WEIGHTS|BACKBONE_WEIGHTS|TIMM\.(PRETRAINED|WEIGHTS))"
    r"|DATALOADER\.NUM_WORKERS|SOLVER\.(CHECKPOINT_PERIOD|EMA_DECAY|REFERENCE_WORLD_SIZE)"
    r"|DISTILL\.TEACHER\.(CONFIG_FILE|WEIGHTS)"
)
# These keys of the model and of distillation only change how losses are weighted and computed.
_LOOSE = re.compile(
    r"MODEL\.DEVICE|MODEL\..*LOSS_WEIGHT|DISTILL\.WARMUP_ITERS"
    r"|DISTILL\.TEACHER\.(PRECISION|CHANNELS_LAST|COMPILE)"
    r"|DISTILL\.\w+\.(WEIGHT|LEVEL_WEIGHTS|RPN_WEIGHT|ALPHA|BETA|GAMMA|LAMBDA_)"
)
_FIXED = re.compile(r"MODEL\..*|DISTILL\..*|SEED|INPUT\.FORMAT")
# Other keys follow from these two, so errors name these first.
_FIRST = ("MODEL.META_ARCHITECTURE", "DISTILL.METHODS")


def influential_changes(before: str, cfg: CfgNode, path: Any) -> list[str]:
    """Return the changed keys that influence how a resumed training continues.

    Args:
        before: the config that the training was started with, as YAML.
        cfg: the config that the training is resumed with.
        path: the path to name in the error.

    Raises:
        UserError: when a key changed that cannot change, such as a width. The error names the key.
    """
    old, new = (comparable(yaml.safe_load(text)) for text in (before, cfg.dump()))
    changed = [
        # Only common keys count: versions of this project and of Detectron2 add and remove keys.
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
    """Whether nothing reads a key: distillation is off, or the key is for an unused method."""
    top, _, rest = key.partition(".")
    if top != "DISTILL" or rest == "INHERIT":
        return False
    if not distils(cfg):
        return True
    node = rest.partition(".")[0]
    is_method = isinstance(cfg.DISTILL.get(node), CfgNode) and node != "TEACHER"
    return is_method and node.lower() not in cfg.DISTILL.METHODS
