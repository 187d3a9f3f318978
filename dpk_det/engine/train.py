"""The training command, with Detectron2's arguments, --check and --eval-teacher."""

import argparse
import contextlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from dpk_det.architectures import build, plain_architecture
from dpk_det.checkpoint.loading import load_weights_strictly
from dpk_det.config.loading import load_config
from dpk_det.config.methods import check_distillation, unused_keys
from dpk_det.config.values import check_channels
from dpk_det.data import check_datasets, register_image_datasets, register_json_datasets
from dpk_det.engine.augmented import check_augmented, test_augmented
from dpk_det.engine.average import AVERAGE
from dpk_det.engine.best import BEST, check_best
from dpk_det.engine.check import NotReadyError, check
from dpk_det.engine.evaluators import check_evaluators
from dpk_det.engine.folder import LOGGERS, lenient_logs, set_up
from dpk_det.engine.launch import first_rank_does, launch, use_device
from dpk_det.engine.lock import training_lock
from dpk_det.engine.resume.checkpoints import last_checkpoint
from dpk_det.engine.resume.continuity import find_start, what_continues
from dpk_det.engine.signals import watched
from dpk_det.engine.start import has_teacher, teacher_weights
from dpk_det.engine.teacher_accuracy import evaluate_teacher
from dpk_det.engine.tracker import check_tracker
from dpk_det.engine.trainer import DistillTrainer
from dpk_det.errors import UserError, find
from dpk_det.files import no_room_ends

_CHECKPOINT = rf"(model_final|model_\d+|{AVERAGE}|{BEST})\.pth"  # what a training writes


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, by default ``sys.argv``."""
    parser = default_argument_parser()
    parser.add_argument(
        "--check",
        action="store_true",
        help="build everything, open every image, take one step, evaluate two images of each "
        "dataset, report level pairs, parameters, weights, dataset sizes and losses, and exit",
    )
    parser.add_argument(
        "--check-images",
        action="store_true",
        help="--check, and read every image of every dataset whole, not its header alone",
    )
    parser.add_argument(
        "--eval-teacher",
        action="store_true",
        help="evaluate the teacher of the config on DATASETS.TEST, leave its figures in "
        "OUTPUT_DIR/teacher.json, and exit; with --check after its report",
    )
    args = parser.parse_args(argv)
    args.check = args.check or args.check_images
    if args.eval_only and (args.check or args.eval_teacher):
        parser.error("--eval-only goes with neither --check nor --eval-teacher")
    return args


def setup(args: argparse.Namespace) -> CfgNode:
    """Load and check the config of a command line, and register and find its datasets.

    Raises:
        UserError: when a key, architecture or dataset is unknown, when a value does not fit, or
            when a file is missing.
    """
    cfg = load_config(args.config_file, args.opts)
    trains = args.check or not (args.eval_only or args.eval_teacher)
    if not trains:  # an evaluation needs no training data
        cfg = plain_architecture(cfg)
        # Detectron2 still reads the keypoints' names from DATASETS.TRAIN.
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST if cfg.MODEL.KEYPOINT_ON else ()
    find(dict(META_ARCH_REGISTRY), cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    check_channels(cfg)
    if trains:
        check_distillation(cfg)
        if not cfg.DATASETS.TRAIN:
            raise UserError("DATASETS.TRAIN is empty: name what to train on.")
    register_json_datasets(cfg)
    register_image_datasets(cfg)
    # Only one process checks, because it takes time. Others get the classes with the data.
    first_rank_does(lambda: check_datasets(cfg, args.check, args.check_images))
    check_evaluators(cfg.DATASETS.TEST)
    check_augmented(cfg)
    if trains:
        check_best(cfg)
        check_tracker(cfg)
    use_device(cfg)
    cfg.freeze()
    return cfg


def main(args: argparse.Namespace) -> Any:
    """Run the task of the command line in one process.

    Returns:
        The results of an evaluation or a training. None for --check alone, or if the training had
        already finished.

    Raises:
        UserError: when the user made a mistake, or a loss became infinite or NaN.
    """
    if not (args.check or args.eval_only or args.eval_teacher):
        with watched():
            return _train(args)
    cfg = setup(args)
    for name in LOGGERS:  # only to the console, because log.txt belongs to a training
        setup_logger(distributed_rank=comm.get_rank(), name=name)
    _say_first(cfg)
    if args.check:
        check_teacher_is_kept(cfg)
        check_batch(cfg, args.num_processes)
        find_start(cfg, args.resume)
        try:
            print(check(cfg, args.num_processes))
        except NotReadyError as e:
            print(e.report)
            raise
    if args.eval_teacher:
        with no_room_ends(cfg.OUTPUT_DIR):
            return evaluate_teacher(cfg)
    if args.check:
        return None
    model, last = build(cfg), args.resume and last_checkpoint(cfg.OUTPUT_DIR, False)
    weights = str(last.path) if last else cfg.MODEL.WEIGHTS
    average = Path(cfg.OUTPUT_DIR, f"{AVERAGE}.pth")
    if last and cfg.SOLVER.EMA_DECAY and average.is_file():
        weights = str(average)  # of the same step: each checkpoint rewrites it
    if not weights:
        raise UserError("MODEL.WEIGHTS is empty: name the checkpoint to evaluate.")
    logging.getLogger("dpk_det").info("Evaluating %s.", weights)
    load_weights_strictly(model, weights, "MODEL.WEIGHTS")
    with no_room_ends(cfg.OUTPUT_DIR):
        results = DistillTrainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(test_augmented(cfg, model, DistillTrainer.test))
        return results


def _train(args: argparse.Namespace) -> Any:
    cfg = setup(args)
    check_teacher_is_kept(cfg)
    check_batch(cfg, comm.get_world_size())
    with contextlib.ExitStack() as stack:
        stack.enter_context(lenient_logs(cfg.OUTPUT_DIR))
        stack.enter_context(no_room_ends(cfg.OUTPUT_DIR))
        first_rank_does(lambda: stack.enter_context(training_lock(cfg.OUTPUT_DIR)))
        start = find_start(cfg, args.resume)  # before anything in OUTPUT_DIR is overwritten
        if start and (change := what_continues(cfg, start)):
            if comm.is_main_process():
                print(
                    f"{cfg.OUTPUT_DIR} is trained to its end, {start.step} steps: {change} to go "
                    "on."
                )
            return None
        set_up(cfg, args)
        _say_first(cfg)
        trainer = DistillTrainer(cfg)
        trainer.start_from(start)
        return trainer.train()


def _say_first(cfg: CfgNode) -> None:
    if cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:
        logging.getLogger("dpk_det").warning(
            "The learning rate never reaches its value: SOLVER.WARMUP_ITERS is %d and the training "
            "has %d steps. Lower it to a tenth of the steps or less.",
            cfg.SOLVER.WARMUP_ITERS,
            cfg.SOLVER.MAX_ITER,
        )
    if cfg.MODEL.DEVICE == "cpu":
        logging.getLogger("dpk_det").info("Running on the CPU, in float32.")
    unused = unused_keys(cfg)
    if unused:
        logging.getLogger("dpk_det").info(
            "Without effect, because a %s does not run these methods: %s.",
            cfg.MODEL.META_ARCHITECTURE,
            ", ".join(unused),
        )


def check_batch(cfg: CfgNode, num_processes: int) -> None:
    """Check that the processes can share a batch equally.

    Raises:
        UserError: when ``SOLVER.IMS_PER_BATCH`` is no multiple of ``SOLVER.REFERENCE_WORLD_SIZE``
            or, if that is 0, of the number of processes.
    """
    images, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    # With a reference, Detectron2 multiplies the batch by number of processes / reference.
    key, sharers = (
        ("SOLVER.REFERENCE_WORLD_SIZE", reference)
        if reference
        else ("the number of processes", num_processes)
    )
    if images % sharers:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {images}, which {key}, {sharers}, does not divide: set it to "
            f"{max(images // sharers, 1) * sharers}."
        )


def check_teacher_is_kept(cfg: CfgNode) -> None:
    """Check that a training overwrites no weights of its own teacher.

    Raises:
        UserError: when the teacher's weights are a checkpoint in the student's OUTPUT_DIR.
    """
    if not has_teacher(cfg):
        return
    try:
        weights = teacher_weights(cfg)
    except UserError:  # none yet: building the teacher reports it
        return
    path = Path(weights).expanduser().resolve()
    if path.parent == Path(cfg.OUTPUT_DIR).resolve() and re.fullmatch(_CHECKPOINT, path.name):
        raise UserError(
            f"The teacher's weights {weights} would be overwritten by the student's, which are "
            f"saved in the same folder: set OUTPUT_DIR, now {cfg.OUTPUT_DIR}, to another."
        )


def run(argv: Sequence[str] | None = None) -> Any:
    """Run the command in the number of processes that the command line gives."""
    args = parse_args(argv)
    args.num_processes = args.num_gpus * args.num_machines
    if args.check:
        args.num_gpus = args.num_machines = 1
    return launch(main, args)


if __name__ == "__main__":
    run()
