"""The training command: Detectron2's arguments, and --check."""

import argparse
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import print_csv_format
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from dpk_det.checkpoint import load_weights
from dpk_det.config import load_config
from dpk_det.data import check_datasets, register_json_datasets
from dpk_det.modeling import plain_architecture

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
    return parser.parse_args(argv)


def setup(args: argparse.Namespace) -> CfgNode:
    """The config that a command line describes, its datasets registered and found.

    Raises:
        UserError: for an unknown key or dataset, or a missing file.
    """
    cfg = load_config(args.config_file, args.opts)
    register_json_datasets(cfg)
    check_datasets(cfg)
    use_device(cfg)
    if args.eval_only:
        cfg = plain_architecture(cfg)  # evaluation needs no teacher
    cfg.freeze()
    return cfg


def main(args: argparse.Namespace) -> Any:
    """Do in one process what the command line asks for; returns the evaluation's results."""
    cfg = setup(args)
    default_setup(cfg, args)
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="dpk_det")
    if cfg.MODEL.DEVICE == "cpu":
        logger.info("Running on the CPU, in float32.")
    if args.check:
        print(check(cfg))
        return None
    if args.eval_only:
        model = build_model(cfg)
        load_weights(model, cfg.MODEL.WEIGHTS)
        results = DistillTrainer.test(cfg, model)
        if comm.is_main_process():
            print_csv_format(results)
        return results
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run(argv: Sequence[str] | None = None) -> Any:
    """Run the command in as many processes as it asks for."""
    args = parse_args(argv)
    if args.check:
        args.num_gpus = args.num_machines = 1
    return launch(main, args)


if __name__ == "__main__":
    run()
