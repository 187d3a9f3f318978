"""Chooses sizes and schedules that suit the data, with reasons."""

from dataclasses import dataclass

from dpk_det.project.measures import Measures

COCO_IMAGES, COCO_EPOCHS = 118_000, 12
SHORT, LONG = 800, 1333
"""Detectron2's sizes for COCO in pixels: a photo's shorter side, and its longer side at most."""

_ENLARGE = 2.0  # at most: larger photos show no more details
_LARGE = 96  # pixels: COCO calls objects of this size large
_LEAST_SHORT = 320
_STEP = 32  # the coarsest stride of usual detectors
_LEAST_STEPS = 300
_IMAGES_OF_A_GPU = 4
_MOST_IMAGES = 16  # per step, as in Detectron2's schedules


@dataclass(frozen=True)
class Choices:
    """The values that the configs get. Sizes are pixels of resized photos.

    Attributes:
        short: shorter side in evaluation.
        shorts: shorter sides in training.
        long: longer side at most.
        small_anchors: whether anchors have to be half as large as usual.
        images: images per step.
        epochs: length of the schedule in epochs.
        steps: length of the schedule in steps.
        warmup: steps of the warm-up.
        detections: most detections per image.
        reasons: name of some of these -> the reason, in a sentence.
    """

    short: int
    shorts: list[int]
    long: int
    small_anchors: bool
    images: int
    epochs: int
    steps: int
    warmup: int
    detections: int
    reasons: dict[str, str]


def choose(data: Measures, gpus: int) -> Choices:
    """Choose sizes and a schedule.

    Args:
        data: measures of the training photos.
        gpus: number of GPUs that train together; 0: the CPU trains.
    """
    short, why_short = _choose_short(data)
    long = max(round(short * LONG / SHORT), _whole(short * data.aspect))
    scale = short / data.short
    small = data.sizes[0] * scale < 16
    sharers = max(gpus, 1)
    images = sharers * max(min(_MOST_IMAGES // sharers, _IMAGES_OF_A_GPU), 1)
    # a compromise between a constant number of epochs and a constant number of steps
    epochs = round(COCO_EPOCHS * max(1.0, COCO_IMAGES / data.num_images) ** 0.35)
    steps = round(epochs * data.num_images / images)
    why_steps = f"{epochs} epochs of {data.num_images:,} photos"
    if epochs != COCO_EPOCHS:
        why_steps += f"; COCO's {COCO_IMAGES:,} have {COCO_EPOCHS}, and fewer photos need more"
    if steps < _LEAST_STEPS:
        steps, why_steps = _LEAST_STEPS, f"at least {_LEAST_STEPS}, however few the photos"
        epochs = round(steps * images / data.num_images)
    reasons = {
        "short": why_short,
        "anchors": f"5 % of the objects are smaller than {data.sizes[0] * scale:.0f} pixels then, "
        "so anchors are half as large as usual",
        "images": _why_images(images, gpus),
        "rate": "the usual rate is for 16 images"
        + f"; for {images} it is {images}/16 of that" * (images != _MOST_IMAGES),
        "steps": why_steps,
    }
    return Choices(
        short=short,
        shorts=sorted({_whole(short * share) for share in (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)}),
        long=long,
        small_anchors=small,
        images=images,
        epochs=epochs,
        steps=steps,
        warmup=min(1000, max(steps // 10, 1)),
        detections=max(100, data.crowded),
        reasons=reasons,
    )


def _choose_short(data: Measures) -> tuple[int, str]:
    usual = min(SHORT / data.short, _ENLARGE)
    quarter = data.sizes[1]
    if quarter * usual <= _LARGE:
        short = _whole(data.short * usual)
        why = "as for COCO" if short == SHORT else f"{data.short} in the photos, enlarged by 2"
        return short, f"{why}; a quarter of the objects is below {quarter:.0f} pixels in the photos"
    short = min(
        max(_whole(data.short * _LARGE / quarter), _LEAST_SHORT), _whole(data.short * usual)
    )
    return short, (
        f"three quarters of the objects are still {quarter * short / data.short:.0f} pixels large "
        "or more; if small details decide, choose more, which costs time"
    )


def _why_images(images: int, gpus: int) -> str:
    if not gpus:
        return "what a CPU can bear"
    if images < _IMAGES_OF_A_GPU * gpus:
        return f"{images // gpus} for each GPU; Detectron2's schedules have {_MOST_IMAGES} in all"
    return f"{_IMAGES_OF_A_GPU} for each GPU"


def _whole(pixels: float) -> int:
    """Round to a multiple of the coarsest stride."""
    return max(round(pixels / _STEP), 1) * _STEP
