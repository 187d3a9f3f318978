"""A project on Detectron2's DefaultTrainer; what distillation adds is marked."""

import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator

from dpk_det import DistillHook, add_dpk_config  # distillation


class Trainer(DefaultTrainer):
    """The project's trainer."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


def setup(args):
    cfg = get_cfg()
    add_dpk_config(cfg)  # distillation
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args):
    trainer = Trainer(setup(args))
    if not args.plain:
        trainer.register_hooks([DistillHook.from_config(trainer.cfg)])  # distillation
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    return trainer


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.set_defaults(config_file="examples/default_trainer/student.yaml")
    parser.add_argument("--plain", action="store_true", help="train the plain twin")
    args = parser.parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
