"""The training command: Detectron2's arguments, and --check."""

import argparse
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from dpk_det.checkpoint import load_weights_strictly
from dpk_det.config import load_config, plain_architecture
from dpk_det.data import check_datasets, register_image_datasets, register_json_datasets
from dpk_det.distill.registry import find
from dpk_det.errors import UserError

from .check import check
from .launch import launch, use_device
from .trainer import DistillTrainer


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``sys.argv`` when none is given."""
    parser = default_argument_parser()
    parser.add_argument(
        "--check",
        action="store_true",
        help="build everything, report level pairs, parameters, weights and dataset sizes, take "
        "one step on made-up images, and exit",
    )
    parser.add_argument(
        "--check-images",
        action="store_true",
        help="--check, and read every image of every dataset whole, not its header alone",
    )
    args = parser.parse_args(argv)
    args.check = args.check or args.check_images
    return args


def setup(args: argparse.Namespace) -> CfgNode:
    """The config that a command line describes, its datasets registered and found.

    Raises:
        UserError: for an unknown key, architecture or dataset, or a missing file.
    """
    cfg = load_config(args.config_file, args.opts)
    if args.eval_only:  # needs neither teacher nor training data
        cfg = plain_architecture(cfg)
        # of which Detectron2 wants to know the keypoints' names all the same
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST if cfg.MODEL.KEYPOINT_ON else ()
    find(dict(META_ARCH_REGISTRY), cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    register_json_datasets(cfg)
    register_image_datasets(cfg)
    check_datasets(cfg, all_images=args.check, decode=args.check_images)
    use_device(cfg)
    cfg.freeze()
    return cfg


def main(args: argparse.Namespace) -> Any:
    """Do in one process what the command line asks for.

    Returns:
        The results, where only an evaluation was asked for.

    Raises:
        UserError: for a user's mistake, or when a loss became infinite or NaN.
    """
    cfg = setup(args)
    # only a training writes log and config into OUTPUT_DIR: those of one must not be overwritten
    trains = not (args.check or args.eval_only)
    rank = comm.get_rank()
    if trains:
        default_setup(cfg, args)
    else:
        for name in ("fvcore", "detectron2"):
            setup_logger(distributed_rank=rank, name=name)
    folder = cfg.OUTPUT_DIR if trains else None
    logger = setup_logger(folder, distributed_rank=rank, name="dpk_det")
    if cfg.MODEL.DEVICE == "cpu":
        logger.info("Running on the CPU, in float32.")
    if args.check:
        print(check(cfg))
        return None
    if args.eval_only:
        model = build_model(cfg)
        if not cfg.MODEL.WEIGHTS:
            raise UserError("MODEL.WEIGHTS is empty: name the checkpoint to evaluate.")
        load_weights_strictly(model, cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
        return DistillTrainer.test(cfg, model)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    try:
        return trainer.train()
    except FloatingPointError as e:
        raise UserError(
            f"Training stopped: {' '.join(str(e).split())}; what it saved is kept in "
            f"{cfg.OUTPUT_DIR}: resume from there with a lower SOLVER.BASE_LR or loss weight."
        ) from e


def run(argv: Sequence[str] | None = None) -> Any:
    """Run the command in as many processes as it asks for."""
    args = parse_args(argv)
    if args.check:
        args.num_gpus = args.num_machines = 1
    return launch(main, args)


if __name__ == "__main__":
    run()
