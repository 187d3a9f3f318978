"""Trains the model of a LazyConfig. Nothing in this file is specific to distillation."""

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
    launch,
)
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm


def main(args):
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    default_setup(cfg, args)
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    model = create_ddp_model(model, **cfg.train.ddp)

    Trainer = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = Trainer(model, instantiate(cfg.dataloader.train), optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)

    def evaluate():
        loader, evaluator = (instantiate(cfg.dataloader[x]) for x in ("test", "evaluator"))
        results = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            print_csv_format(results)
        return results

    trainer.register_hooks(
        [hooks.IterationTimer(), hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))]
    )
    if comm.is_main_process():
        saving = hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
        trainer.register_hooks([saving])
    trainer.register_hooks([hooks.EvalHook(cfg.train.eval_period, evaluate)])
    if comm.is_main_process():
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        trainer.register_hooks([hooks.PeriodicWriter(writers, period=cfg.train.log_period)])

    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    resumed = args.resume and checkpointer.has_checkpoint()
    trainer.train(trainer.iter + 1 if resumed else 0, cfg.train.max_iter)
    return model


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.set_defaults(config_file="examples/lazyconfig/distilled.py")
    args = parser.parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
