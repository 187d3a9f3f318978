"""A project with its own training loop; what distillation adds is marked."""

import logging
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import default_argument_parser, default_setup, default_writers, launch
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from dpk_det import add_dpk_config, distil, inherit_weights, load_teacher  # distillation

logger = logging.getLogger("detectron2")
DPK = {"weight": 100.0, "target": "raw", "loss": "cwd", "token_stride": 16, "dim": 64, "heads": 4}


def train(cfg, model, teacher, resume):
    model.train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    checkpointer = DetectionCheckpointer(
        model, cfg.OUTPUT_DIR, optimizer=optimizer, scheduler=scheduler
    )
    loaded = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    start = loaded.get("iteration", -1) + 1
    if start == 0:
        inherit_weights(checkpointer.model, teacher.model)  # distillation, for the plain twin too
    max_iter = cfg.SOLVER.MAX_ITER
    saving = PeriodicCheckpointer(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_iter=max_iter)
    writers = default_writers(cfg.OUTPUT_DIR, max_iter) if comm.is_main_process() else []
    logger.info("Training from step %d to %d", start, max_iter)
    with EventStorage(start) as storage:
        batches = build_detection_train_loader(cfg)
        for storage.iter, batch in zip(range(start, max_iter), batches, strict=False):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            storage.put_scalar("lr", optimizer.param_groups[0]["lr"], smoothing_hint=False)
            scheduler.step()

            losses = {name: loss.item() for name, loss in comm.reduce_dict(losses).items()}
            storage.put_scalars(total_loss=sum(losses.values()), **losses)
            if (storage.iter + 1) % 20 == 0 or storage.iter + 1 == max_iter:
                for writer in writers:
                    writer.write()
            if comm.is_main_process():
                saving.step(storage.iter)
    for writer in writers:
        writer.close()


def evaluate(cfg, model):
    for name in cfg.DATASETS.TEST:
        loader = build_detection_test_loader(cfg, name)  # first: it draws the dataset
        evaluator = COCOEvaluator(name, output_dir=cfg.OUTPUT_DIR)
        results = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            print_csv_format(results)


def setup(args):
    cfg = get_cfg()
    add_dpk_config(cfg)  # this project's backbone is from dpk_det
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args):
    cfg = setup(args)
    model = build_model(cfg)
    teacher = load_teacher(args.teacher_config, args.teacher_weights)  # distillation
    if not args.plain:
        # distillation: before optimizer, DistributedDataParallel and checkpointer are built
        distil(model, teacher, {"dpk": DPK}, max_iter=cfg.SOLVER.MAX_ITER)
    train(cfg, create_ddp_model(model, broadcast_buffers=False), teacher, args.resume)
    if not args.plain:
        model.distillation.remove()  # distillation: from here on it is the plain model
    if comm.is_main_process():
        torch.save({"model": model.state_dict()}, Path(cfg.OUTPUT_DIR) / "student.pth")
    evaluate(cfg, model)
    return model


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.set_defaults(config_file="examples/plain_loop/student.yaml")
    parser.add_argument("--plain", action="store_true", help="train the plain twin")
    parser.add_argument("--teacher-config", default="configs/shapes/teacher.yaml")
    parser.add_argument(
        "--teacher-weights",
        default="output/demo/runs/teacher/model_final.pth",
        help="default: those that `make demo` leaves",
    )
    args = parser.parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
