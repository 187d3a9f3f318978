"""Starts one process or many: by ``--num-gpus`` on one machine or more, or under torchrun."""

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import defaults
from detectron2.engine import launch as spawn
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from dpk_det.errors import UserError


def launch(main: Callable[..., Any], args: argparse.Namespace, *main_args: Any) -> Any:
    """Run ``main(args, *main_args)`` in each process, and end a user's mistake in one line.

    Under torchrun this process joins its group (NCCL or gloo). Else Detectron2's launcher starts
    ``args.num_gpus`` processes on each of ``args.num_machines``; without a GPU it is this process.

    Args:
        main: must be importable, because it is sent to other processes.
        args: of :func:`detectron2.engine.default_argument_parser`.
        main_args: further arguments, picklable.

    Returns:
        What main returns, where it ran in this process.
    """
    try:
        with exit_on_user_error():
            if {"RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= os.environ.keys():
                return _join_group(main, args, *main_args)
            num_gpus = _count_gpus(args.num_gpus)
            if num_gpus == 0 and args.num_machines > 1:
                raise UserError(
                    f"--num-machines is {args.num_machines} but this machine has no GPU to use: "
                    "start CPU processes with torchrun."
                )
            if num_gpus == 0 or num_gpus * args.num_machines == 1:
                return main(args, *main_args)
            return spawn(
                _guarded,
                num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args, *main_args),
            )
    except ProcessExitedException as e:  # that process has said why
        sys.exit(e.exit_code)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Around a command: print a user's mistake as one line, no traceback, and exit with 2."""
    try:
        yield
    except UserError as e:
        if not dist.is_initialized() or comm.get_local_rank() == 0:
            print(f"error: {e}", file=sys.stderr)
        sys.exit(2)


def _guarded(main: Callable[..., Any], *args: Any) -> Any:
    # in a process of its own, from where an exception would come out as a long traceback
    with exit_on_user_error():
        return main(*args)


def _count_gpus(num_gpus: int) -> int:
    if not torch.cuda.is_available():
        return 0
    if num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus asks for {num_gpus} GPUs but this machine has "
            f"{torch.cuda.device_count()}: ask for at most that many."
        )
    return num_gpus


def _join_group(main: Callable[..., Any], *args: Any) -> Any:
    local_rank, local_size = (int(os.environ[key]) for key in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    else:
        # Detectron2 hands DistributedDataParallel the rank as a GPU's number
        defaults.create_ddp_model = functools.partial(defaults.create_ddp_model, device_ids=None)
    dist.init_process_group("nccl" if has_gpu else "gloo")
    _create_local_group(local_size)
    result = _guarded(main, *args)  # while it is known which rank may speak
    # not after an exception: the others may be waiting in a collective, and torchrun ends them
    dist.destroy_process_group()
    return result


def _create_local_group(local_size: int) -> None:
    if hasattr(comm, "create_local_process_group"):  # newer than 0.6
        return comm.create_local_process_group(local_size)
    for first in range(0, dist.get_world_size(), local_size):
        ranks = range(first, first + local_size)
        group = dist.new_group(list(ranks))  # every process takes part in the making of each
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def use_device(cfg: CfgNode) -> None:
    """Let a config run on the CPU, in float32, where there is no GPU; in place."""
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        cfg.SOLVER.AMP.ENABLED = False  # Detectron2's needs a GPU
