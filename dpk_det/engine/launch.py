"""Start one or many processes: by ``--num-gpus`` on one or more machines, or under torchrun."""

import argparse
import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import defaults
from detectron2.engine import launch as spawn
from detectron2.utils import comm

from dpk_det.engine.ends import exit_on_user_error
from dpk_det.engine.signals import PARENT, die_with_parent, pass_signals_on
from dpk_det.errors import UserError


def launch(main: Callable[..., Any], args: argparse.Namespace, *main_args: Any) -> Any:
    """Run ``main(args, *main_args)`` in each process, and report a user's mistake in one line.

    Under torchrun, this process joins torchrun's group (NCCL or gloo). Otherwise Detectron2's
    launcher starts ``args.num_gpus`` processes on each of ``args.num_machines`` machines. With one
    process in all, or without a GPU, main runs in this process.

    Args:
        main: must be importable, because it is sent to other processes.
        args: parsed by :func:`detectron2.engine.default_argument_parser`.
        main_args: further arguments, picklable.

    Returns:
        The result of main if it ran in this process, otherwise None.
    """
    with exit_on_user_error():
        if {"RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= os.environ.keys():
            die_with_parent()
            return _join_group(main, args, *main_args)
        if PARENT in os.environ:
            die_with_parent()
        num_gpus = _count_gpus(args)
        if num_gpus == 0 or num_gpus * args.num_machines == 1:
            return main(args, *main_args)
        with pass_signals_on():
            return spawn(
                _guarded,
                num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args, *main_args),
            )


def first_rank_does(function: Callable[[], Any]) -> Any:
    """Call a function only in the first process. All processes must call ``first_rank_does``.

    Returns:
        The function's result, in all processes. It must be picklable.

    Raises:
        UserError: in all processes, when the function raised it.
    """
    result = error = None
    if comm.is_main_process():
        try:
            result = function()
        except UserError as e:
            error = e
    result, error = comm.all_gather((result, error))[0]
    if error is not None:
        raise error
    return result


def _guarded(main: Callable[..., Any], *args: Any) -> Any:
    # An exception that leaves a spawned process would be printed as a long traceback.
    with exit_on_user_error():
        die_with_parent()
        return main(*args)


def _count_gpus(args: argparse.Namespace) -> int:
    num_gpus = args.num_gpus
    for option, number, least in (
        ("--num-gpus", num_gpus, 0),
        ("--num-machines", args.num_machines, 1),
        ("--machine-rank", args.machine_rank, 0),
    ):
        if number < least:
            raise UserError(f"{option} is {number}: give a number from {least} on.")
    if args.machine_rank >= args.num_machines:
        raise UserError(
            f"--machine-rank is {args.machine_rank} of {args.num_machines} machines, which count "
            f"from 0: give at most {args.num_machines - 1}."
        )
    if not torch.cuda.is_available():
        if args.num_machines > 1:
            raise UserError(
                f"--num-machines is {args.num_machines} but this machine has no GPU to use: start "
                "CPU processes with torchrun."
            )
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
    if has_gpu and local_size > torch.cuda.device_count():
        raise UserError(
            f"torchrun starts {local_size} processes but this machine has "
            f"{torch.cuda.device_count()} GPUs: give --nproc-per-node at most that many."
        )
    if has_gpu:
        torch.cuda.set_device(local_rank)
    else:
        # Detectron2 passes the rank to DistributedDataParallel as a GPU number. A CPU has none.
        defaults.create_ddp_model = functools.partial(defaults.create_ddp_model, device_ids=None)
    dist.init_process_group("nccl" if has_gpu else "gloo")
    _create_local_group(local_size)
    result = _guarded(main, *args)  # the group must still exist, to choose the rank that prints
    # An exception skips this, because others may wait in a collective. torchrun ends them.
    dist.destroy_process_group()
    return result


def _create_local_group(local_size: int) -> None:
    if hasattr(comm, "create_local_process_group"):  # newer than 0.6
        return comm.create_local_process_group(local_size)
    for first in range(0, dist.get_world_size(), local_size):
        ranks = range(first, first + local_size)
        group = dist.new_group(list(ranks))  # every process must take part in creating each group
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def use_device(cfg: CfgNode) -> None:
    """Set a config to the CPU if there is no GPU, and to float32 on the CPU, in place.

    Raises:
        UserError: when ``MODEL.DEVICE`` is not a device, when this machine lacks it, or when it
            names one GPU for several processes.
    """
    name = cfg.MODEL.DEVICE
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"MODEL.DEVICE is {name!r}: write 'cuda' or 'cpu'.")
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu":
        cfg.SOLVER.AMP.ENABLED = False  # Detectron2's needs a GPU
    elif device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"MODEL.DEVICE is {name!r} but this machine has {torch.cuda.device_count()} GPUs, "
                "counted from 0: write 'cuda'."
            )
        if comm.get_world_size() > 1:
            raise UserError(
                f"MODEL.DEVICE is {name!r}, which {comm.get_world_size()} processes cannot share: "
                "write 'cuda', then each takes a GPU of its own."
            )
