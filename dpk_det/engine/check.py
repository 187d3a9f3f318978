"""Check a job before it is queued: build everything, take steps and evaluate two images."""

import contextlib
import io
import itertools
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    inference_context,
)
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn

from dpk_det.architectures import build, classifies
from dpk_det.checkpoint.loading import find_weights
from dpk_det.data import dataset_sizes
from dpk_det.distill.dpk.cka import MIN_SAMPLES
from dpk_det.engine.results import count_parameters
from dpk_det.engine.start import (
    Start,
    has_teacher,
    load_start,
    make_teacher_weights,
    teacher_weights,
)
from dpk_det.engine.trainer import DistillTrainer
from dpk_det.errors import UserError
from dpk_det.pairing.scaling import scale_to_processes
from dpk_det.pairing.teacher import (
    WEIGHTS_KEY,
)

NUM_EVALUATED = 2
"""Number of images to evaluate of each dataset."""


class NotReadyError(UserError):
    """The job is not ready, but has no mistake: its teacher is not trained yet.

    Args:
        missing: a sentence on what is missing.
        report: the report on the rest of the check, which passed.
    """

    def __init__(self, missing: str, report: str = "") -> None:
        super().__init__(f"not ready: {missing}")
        self.report = report


def check(cfg: CfgNode, num_processes: int = 1) -> str:
    """Build student, teacher and distiller as training would, take two steps and evaluate a little.

    The steps use the first images of the training, at most two, or eight for a classifier and four
    for CKA of images. Two images of each dataset in ``DATASETS.TEST`` are evaluated. Nothing is
    written into ``OUTPUT_DIR``. A teacher that is not trained yet gets random weights here.

    Args:
        cfg: the config of the training.
        num_processes: how many processes will train; the check itself runs in one.

    Returns:
        A report: level pairs, parameter counts, found weights, dataset sizes, losses, time and the
        figures that the evaluation gives.

    Raises:
        NotReadyError: when the teacher has no weights yet, and nothing else is wrong.
        UserError: when anything would stop the training, such as a loss that is not finite.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg = scale_to_processes(cfg, num_processes).clone()
        cfg.defrost()
        cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = folder, 0
        asked = max(cfg.SOLVER.IMS_PER_BATCH // num_processes, 1)
        enough = MIN_SAMPLES if cfg.DISTILL.DPK.CKA_OF == "images" else 2
        cfg.SOLVER.IMS_PER_BATCH = min(asked, 8 if classifies(cfg) else enough)
        cfg.INPUT.IMAGES.BATCH_TEST = NUM_EVALUATED
        missing = _missing_weights(cfg)
        if missing:
            make_teacher_weights(cfg, f"{folder}/teacher.pth")
        teachers = "none yet, random ones in this check" if missing else "all found"
        report = _try(cfg, teachers, asked / cfg.SOLVER.IMS_PER_BATCH)
    if missing:
        raise NotReadyError(missing, report)
    return f"{report}\n\nThe job is ready to run."


def _try(cfg: CfgNode, teachers_weights: str, scale: float) -> str:
    model = build(cfg)
    start = load_start(model, cfg)
    bond = getattr(model, "distillation", None)
    parts = {"student": model}
    if bond:
        parts |= {"teacher": bond.teacher.model, "distiller": bond.distiller}
    counts = {name: count_parameters(part) for name, part in parts.items()}
    counts["student"] -= counts.get("distiller", 0)

    teacher = teachers_weights if bond else ""
    losses, seconds = _step(cfg, model)
    hours = seconds * scale * cfg.SOLVER.MAX_ITER / 3600
    figures = {name: _evaluate(cfg, model, name) for name in cfg.DATASETS.TEST}
    sections = [
        ("parameters", tabulate(counts.items(), intfmt=",")),
        ("weights", _describe_weights(cfg, model, start, teacher)),
        ("images", tabulate(dataset_sizes(cfg).items(), intfmt=",")),
        ("losses of one step", tabulate(losses.items(), floatfmt=".4f")),
        (
            "time",
            f"about {f'{hours:.0f} hours' if hours > 2 else f'{60 * hours:.0f} minutes'} for "
            f"{cfg.SOLVER.MAX_ITER:,} steps, from {seconds:.2g} seconds for a step of "
            f"{cfg.SOLVER.IMS_PER_BATCH} images ({scale:g} times as many in the training); "
            "evaluations come on top",
        ),
        ("figures of the evaluation", tabulate(figures.items())),
    ]
    if bond:
        found = (level for m in bond.distiller.methods.values() for level in m.levels)
        levels = list(dict.fromkeys(found))
        rows = [
            (x.student, x.student_channels, x.teacher, x.teacher_channels, x.stride)
            for x in sorted(levels, key=lambda level: level.stride)
        ]
        headers = ["student", "channels", "teacher", "channels", "stride"]
        sections.insert(0, ("level pairs", tabulate(rows, headers)))
    return "\n\n".join(f"{title}\n{text}" for title, text in sections if text)


# ------------------------------------------------------------------ weights


def _missing_weights(cfg: CfgNode) -> str:
    """Return the error for a teacher without weights; "" if it has weights or none is used."""
    if has_teacher(cfg):
        try:
            find_weights(teacher_weights(cfg), WEIGHTS_KEY)
        except UserError as e:
            return str(e)
    return ""


def _describe_weights(cfg: CfgNode, model: nn.Module, start: Start, teacher: str) -> str:
    lines, found = [], start.weights
    if found is None:
        own = _backbones_own(cfg)
        rest = f"its network from {own}, the rest" if own else "starts"
        lines.append(f"student: none given (MODEL.WEIGHTS is empty), {rest} at random")
    else:
        names = [name for name in model.state_dict() if not name.startswith("distiller.")]
        missing = {*found.missing_keys, *(name for name, *_ in found.incorrect_shapes)}
        num_found = len([name for name in names if name not in missing])
        lines.append(f"student: {num_found} of {len(names)} found in {cfg.MODEL.WEIGHTS}")
        lines += [f"  of another shape there: {name}" for name, *_ in found.incorrect_shapes]
    if start.backbone:
        missing = ", ".join(start.backbone.missing_keys) or "none"
        lines.append(f"backbone: from {cfg.MODEL.BACKBONE_WEIGHTS}; not found there: {missing}")
    if start.inherited:
        lines.append(f"student: {len(start.inherited)} inherited from the teacher")
    if teacher:
        lines.append(f"teacher: {teacher}")
    return "\n".join(lines)


def _backbones_own(cfg: CfgNode) -> str:
    """Return the weights that a timm network loads when it is built; "" for none."""
    timm = cfg.MODEL.TIMM
    if "timm" not in cfg.MODEL.BACKBONE.NAME:
        return ""
    return timm.WEIGHTS or ("timm's weights" if timm.PRETRAINED else "")


# ------------------------------------------------------------------ a step


def _step(cfg: CfgNode, model: nn.Module) -> tuple[dict[str, float], float]:
    """Return a step's losses, and the seconds of the next step, which needs no set-up."""
    with _fails("Reading the first images of DATASETS.TRAIN"):
        batch = next(iter(DistillTrainer.build_train_loader(cfg)))
    optimizer = DistillTrainer.build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the second step could diverge, as there is no warm-up
    model.train()
    with _fails("The first step on images of DATASETS.TRAIN"):
        values = _take_step(cfg, model, batch, optimizer)
        for name, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value}; the weights, INPUT.FORMAT, MODEL.PIXEL_MEAN and "
                    "MODEL.PIXEL_STD may be the cause"
                )
    with _fails("The second step on images of DATASETS.TRAIN"):
        start = time.perf_counter()
        _take_step(cfg, model, batch, optimizer)
    return values, time.perf_counter() - start


def _take_step(
    cfg: CfgNode, model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    amp = cfg.SOLVER.AMP.ENABLED  # use_device turns it off on a CPU
    with EventStorage(), torch.autocast(cfg.MODEL.DEVICE.partition(":")[0], enabled=amp):
        losses = model(batch)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}


@contextlib.contextmanager
def _fails(what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        reason = " ".join(str(e).split())
        logging.getLogger("dpk_det").debug("%s failed.", what, exc_info=True)
        raise UserError(
            f"{what} failed ({type(e).__name__}: {reason}): correct the config or the data."
        ) from e


# ------------------------------------------------------------------ evaluation


def _evaluate(cfg: CfgNode, model: nn.Module, name: str) -> str:
    """Evaluate a few images of a dataset and return the names of the figures."""
    with _fails(f"The evaluation of {NUM_EVALUATED} images of {name}"), _silence():
        loader = DistillTrainer.build_test_loader(cfg, name)
        evaluator = DistillTrainer.build_evaluator(cfg, name)
        evaluators = getattr(evaluator, "_evaluators", [evaluator])
        num_batches = 1 if classifies(cfg) else NUM_EVALUATED
        batches = list(itertools.islice(loader, num_batches))
        evaluator.reset()
        with inference_context(model), torch.no_grad():
            for batch in batches:
                evaluator.process(batch, model(batch))
        figures: dict[str, Any] = {}
        for each in evaluators:
            figures.update(_figures(each, batches))
    measures = any(getattr(each, "_do_evaluation", True) for each in evaluators)
    if measures and not figures:
        raise UserError(
            f"The evaluation of {name} gives no figure, because a {cfg.MODEL.META_ARCHITECTURE} "
            "finds nothing that its evaluator measures: take it out of DATASETS.TEST."
        )
    return "; ".join(
        f"{task}: {', '.join(x for x in values if '-' not in x)}"
        for task, values in figures.items()
    )


def _figures(evaluator: DatasetEvaluator, batches: list[Any]) -> dict[str, Any]:
    if isinstance(evaluator, COCOPanopticEvaluator):
        return {"panoptic_seg": {"PQ": 0, "SQ": 0, "RQ": 0}}  # it cannot evaluate a few images
    if isinstance(evaluator, COCOEvaluator):
        return evaluator.evaluate(img_ids=[x["image_id"] for batch in batches for x in batch])
    return evaluator.evaluate()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hide the figures of two images from the console, so that nobody takes them for results."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
