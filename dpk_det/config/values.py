"""Refuses config values that would later cause a traceback or nonsense, and names their key."""

import fnmatch
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from detectron2.config import CfgNode
from detectron2.solver import build as solver
from msgspec import Meta

from dpk_det.errors import UserError, check_names, find
from dpk_det.schema import convert

MOST = 2**31 - 1
LEAST = 8  # pixels along a side; smaller images leave nothing for a detector

Number = Annotated[float, Meta(ge=-1_000_000_000, le=1_000_000_000)]
Positive = Annotated[float, Meta(gt=0, le=1_000_000_000)]
NotNegative = Annotated[float, Meta(ge=0, le=1_000_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Inside = Annotated[float, Meta(gt=0, lt=1)]
Whole = Annotated[int, Meta(ge=0, le=MOST)]
Count = Annotated[int, Meta(ge=1, le=MOST)]
Few = Annotated[int, Meta(ge=0, le=1000)]
Texts = Sequence[str]
Sizes = Annotated[Sequence[Whole], Meta(min_length=1)]
Counts = Annotated[Sequence[Count], Meta(min_length=1)]
Positives = Annotated[Sequence[Positive], Meta(min_length=1)]
Shares = Sequence[Share]
FourPositive = tuple[Positive, Positive, Positive, Positive]
BoxLoss = Literal["smooth_l1", "giou", "diou", "ciou"]
Pooler = Literal["ROIAlign", "ROIAlignV2", "ROIAlignRotated", "ROIPool"]

KINDS: dict[str, Any] = {
    "SEED": Annotated[int, Meta(ge=-1, le=MOST)],
    "VIS_PERIOD": Whole,
    "OUTPUT_DIR": Annotated[str, Meta(min_length=1)],
    # ------------------------------------------------------------------ data
    "DATASETS.TRAIN": Texts,
    "DATASETS.TEST": Texts,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_*": Count,
    "DATALOADER.NUM_WORKERS": Few,
    "DATALOADER.REPEAT_THRESHOLD": NotNegative,
    "DATALOADER.RANDOM_SUBSET_RATIO": Annotated[float, Meta(gt=0, le=1)],
    "INPUT.MIN_SIZE_TRAIN": Sizes,  # 0: images are not resized
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": Literal["choice", "range"],
    "INPUT.MAX_SIZE_*": Annotated[int, Meta(ge=LEAST, le=MOST)],
    "INPUT.MIN_SIZE_TEST": Whole,
    "INPUT.RANDOM_FLIP": Literal["horizontal", "vertical", "none"],
    "INPUT.CROP.TYPE": Literal["relative_range", "relative", "absolute", "absolute_range"],
    "INPUT.CROP.SIZE": tuple[Positive, Positive],
    "INPUT.FORMAT": Literal["BGR", "RGB", "L", "YUV-BT.601"],
    "INPUT.MASK_FORMAT": Literal["polygon", "bitmask"],
    "INPUT.IMAGES.PAD": Whole,
    "INPUT.IMAGES.SIZE": Count,
    "INPUT.IMAGES.RESIZE_TEST": Count,
    "INPUT.IMAGES.BATCH_TEST": Count,
    # ------------------------------------------------------------------ training and evaluation
    "SOLVER.MAX_ITER": Count,
    "SOLVER.BASE_LR": NotNegative,
    "SOLVER.EMA_DECAY": Annotated[float, Meta(ge=0, lt=1)],
    "SOLVER.MOMENTUM": Annotated[float, Meta(ge=0, lt=1)],
    "SOLVER.WEIGHT_DECAY": NotNegative,
    "SOLVER.WEIGHT_DECAY_NORM": NotNegative,
    "SOLVER.WEIGHT_DECAY_BIAS": NotNegative | None,
    "SOLVER.BIAS_LR_FACTOR": NotNegative,
    "SOLVER.GAMMA": Annotated[float, Meta(gt=0, le=1)],
    "SOLVER.STEPS": Sequence[Count],
    "SOLVER.WARMUP_FACTOR": Share,
    "SOLVER.WARMUP_ITERS": Whole,
    "SOLVER.WARMUP_METHOD": Literal["linear", "constant"],
    "SOLVER.CHECKPOINT_PERIOD": Count,
    "SOLVER.IMS_PER_BATCH": Count,
    "SOLVER.REFERENCE_WORLD_SIZE": Whole,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": Literal["value", "norm"],
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": Positive,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Positive,
    "TEST.EXPECTED_RESULTS": Sequence[tuple[str, str, Number, NotNegative]],
    "TEST.EVAL_PERIOD": Whole,
    "TEST.PATIENCE": Whole,
    "TEST.KEYPOINT_OKS_SIGMAS": Sequence[Positive],
    "TEST.DETECTIONS_PER_IMAGE": Count,
    "TEST.AUG.MIN_SIZES": Counts,
    "TEST.AUG.MAX_SIZE": Count,
    "TEST.PRECISE_BN.NUM_ITER": Count,
    "DISTILL.WARMUP_ITERS": Whole,
    "DISTILL.STOP_AT": Share,
    "DISTILL.GRAD_SHARE": Annotated[float, Meta(ge=0, le=1000)],
    "DISTILL.GRAD_SHARE_EVERY": Whole,
    # ------------------------------------------------------------------ models
    "MODEL.PIXEL_MEAN": Sequence[Number],
    "MODEL.PIXEL_STD": Sequence[Positive],
    "MODEL.BACKBONE.FREEZE_AT": Few,
    "MODEL.ANCHOR_GENERATOR.SIZES": Annotated[Sequence[Positives], Meta(min_length=1)],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": Annotated[Sequence[Positives], Meta(min_length=1)],
    "MODEL.ANCHOR_GENERATOR.OFFSET": Annotated[float, Meta(ge=0, lt=1)],
    "MODEL.FPN.FUSE_TYPE": Literal["sum", "avg"],
    "MODEL.RPN.BOUNDARY_THRESH": Annotated[int, Meta(ge=-1, le=MOST)],
    "MODEL.RPN.CONV_DIMS": Annotated[
        Sequence[Annotated[int, Meta(ge=-1, le=8192)]], Meta(min_length=1)
    ],
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": Sequence[FourPositive],
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": Shares,
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": Whole,
    "MODEL.SMALL_RESNET.*": Counts,
    "MODEL.CLASSIFIER.LABEL_SMOOTHING": Share,
    "MODEL.TIMM.OUT_INDICES": Sequence[int],
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": tuple[bool, bool, bool, bool],
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": int,
    # in any node
    "MODEL.*.*_FEATURES": Texts,
    "MODEL.*.NUM_CLASSES": Count,
    "MODEL.*.IOU_THRESHOLDS": Shares,
    "MODEL.*.IOU_LABELS": Sequence[Literal[-1, 0, 1]],
    "MODEL.*.BBOX_REG_LOSS_TYPE": BoxLoss,
    "MODEL.*.BBOX_REG_WEIGHTS": FourPositive,
    "MODEL.*.POOLER_TYPE": Pooler,
    "MODEL.*.POOLER_RESOLUTION": Annotated[int, Meta(ge=1, le=1000)],
    "MODEL.*.CONV_DIMS": Sequence[Count],
    "MODEL.*.NUM_CONV*": Few,
    "MODEL.*.NUM_FC": Few,
    "MODEL.*.POOLER_SAMPLING_RATIO": Few,
    "MODEL.*.PRIOR_PROB": Inside,
    "MODEL.*.*LOSS_ALPHA": Share,
    "MODEL.*.*_FRACTION": Share,
    "MODEL.*.*THRESH*": Share,
    "MODEL.*.*LIMIT": Whole,
    "MODEL.*.MIN_SIZE": Whole,
    "MODEL.*.*WEIGHT": NotNegative,
    "MODEL.*.*BETA": NotNegative,
    "MODEL.*.*GAMMA": NotNegative,
    "MODEL.*.*RADIUS": NotNegative,
}
"""Key or pattern of keys -> annotation of the value. The first pattern that matches counts."""

_SCHEDULERS = ["WarmupMultiStepLR", "WarmupCosineLR"]
if hasattr(solver, "StepWithFixedGammaParamScheduler"):  # in Detectron2 newer than 0.6
    _SCHEDULERS.append("WarmupStepWithFixedGammaLR")
_SAMPLERS = ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"]
_SAMPLERS += ["WeightedTrainingSampler", "WeightedCategoryTrainingSampler"]


def check_values(cfg: CfgNode, known: Container[str]) -> None:
    """Check the values of a config, each alone and those that depend on each other.

    Args:
        cfg: the config.
        known: the keys of Detectron2 and dpk_det. Other keys only have to match the patterns, be
            finite and hold no NUL. Arguments of methods are checked elsewhere, by annotation.

    Raises:
        UserError: naming the first key whose value makes no sense.
    """
    for key, value in flatten(cfg):
        kind = _kind(key)
        if kind is not None:
            convert(value, kind, key)
        elif key not in known or _is_argument(key):
            pass
        elif value is None:
            raise UserError(f"{key} is empty: give it a value or take it out.")
        elif type(value) is int:
            convert(value, Count, key)  # all other integers are counts: widths, groups
        if key.endswith("_FEATURES"):
            check_names(value, key)
        if any(isinstance(x, str) and "\0" in x for x in _parts(value)):
            raise UserError(f"{key} holds the character NUL, as no name may: take it out.")
        if not all(map(_is_finite, _parts(value))):
            raise UserError(f"{key} is {value}: write a finite number.")
    find(dict.fromkeys(_SCHEDULERS), cfg.SOLVER.LR_SCHEDULER_NAME, "SOLVER.LR_SCHEDULER_NAME")
    find(dict.fromkeys(_SAMPLERS), cfg.DATALOADER.SAMPLER_TRAIN, "DATALOADER.SAMPLER_TRAIN")
    _check_together(cfg)


def _check_together(cfg: CfgNode) -> None:
    steps = list(cfg.SOLVER.STEPS)
    if steps != sorted(set(steps)):
        raise UserError(f"SOLVER.STEPS is {steps}: write steps that rise.")
    if cfg.SOLVER.NESTEROV and not cfg.SOLVER.MOMENTUM:
        raise UserError("SOLVER.NESTEROV needs a momentum: give SOLVER.MOMENTUM more than 0.")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    for size in (*sizes, cfg.INPUT.MIN_SIZE_TEST):
        if 0 < size < LEAST:
            raise UserError(
                f"INPUT.MIN_SIZE_TRAIN is {tuple(sizes)} and INPUT.MIN_SIZE_TEST "
                f"{cfg.INPUT.MIN_SIZE_TEST}: write {LEAST} pixels or more, or 0 to resize nothing."
            )
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and (
        len(sizes) != 2 or sizes[0] > sizes[1] or not sizes[0]
    ):
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN is {tuple(sizes)}, but INPUT.MIN_SIZE_TRAIN_SAMPLING is range: "
            "give the least and the greatest size."
        )
    if cfg.INPUT.CROP.TYPE.startswith("relative") and max(cfg.INPUT.CROP.SIZE) > 1:
        raise UserError(
            f"INPUT.CROP.SIZE is {list(cfg.INPUT.CROP.SIZE)}, but INPUT.CROP.TYPE is "
            f"{cfg.INPUT.CROP.TYPE}: give shares of the image, up to 1."
        )
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as e:
        raise UserError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, which torch does not know: write cpu or cuda."
        ) from e


def check_channels(cfg: CfgNode) -> None:
    """Check that the model takes as many channels as the images that Detectron2 reads have.

    Raises:
        UserError: if ``MODEL.PIXEL_MEAN`` or ``PIXEL_STD`` has another number of values.
    """
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[key]) != channels:
            raise UserError(
                f"MODEL.{key} has {len(cfg.MODEL[key])} values, but images of INPUT.FORMAT "
                f"{cfg.INPUT.FORMAT} have {channels} channels: give one for each."
            )


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each key of a config or other nested mapping."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _kind(key: str) -> Any:
    return next((kind for name, kind in KINDS.items() if fnmatch.fnmatchcase(key, name)), None)


def _is_argument(key: str) -> bool:
    return key.count(".") > 1 and key.startswith("DISTILL.") and ".TEACHER." not in key


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _parts(part)
    else:
        yield value


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
