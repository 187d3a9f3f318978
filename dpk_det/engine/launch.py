"""Starts one process or many: by ``--num-gpus`` on one machine or more, or under torchrun."""

import argparse
import contextlib
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import defaults
from detectron2.engine import launch as spawn
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from dpk_det.engine.signals import (
    INTERRUPTED,
    PARENT,
    Stopped,
    die_with_parent,
    parent_is_gone,
    pass_signals_on,
)
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


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Around a command: end without a traceback what is no bug, in one line and by exit status.

    These are a user's mistake, a signal that stopped a training, and Ctrl-C. Of many processes one
    speaks; those that find it gone end silently with its status.
    """
    try:
        yield
    except UserError as e:
        _tell(e)
        sys.exit(e.status)
    except Stopped as e:
        sys.exit(_leave_stopped(e))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ProcessExitedException as e:  # that process has said why
        sys.exit(e.exit_code)
    except RuntimeError:  # perhaps of a collective whose partner has left
        status = _status_of_others()
        if status:
            sys.exit(status)
        raise


@contextlib.contextmanager
def no_traceback_of_mistakes() -> Iterator[None]:
    """Around Detectron2's training loop: it logs no traceback of what is no bug."""

    def is_bug(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RuntimeError) and _status_of_others():
            return False  # a collective's, whose partner has left
        return not isinstance(error, UserError)

    logger = logging.getLogger("detectron2.engine.train_loop")
    logger.addFilter(is_bug)
    try:
        yield
    finally:
        logger.removeFilter(is_bug)


def first_rank_does(function: Callable[[], Any]) -> None:
    """Call a function in the first process alone; all processes must call this.

    Raises:
        UserError: what the function raised, in all of them.
    """
    error = None
    if comm.is_main_process():
        try:
            function()
        except UserError as e:
            error = e
    error = comm.all_gather(error)[0]
    if error is not None:
        raise error


def _guarded(main: Callable[..., Any], *args: Any) -> Any:
    # in a process of its own, from where an exception would come out as a long traceback
    with exit_on_user_error():
        die_with_parent()
        return main(*args)


# ------------------------------------------------------------------ ends

# keys in the store that all processes share
_LEFT, _TOLD = "dpk_det/left", "dpk_det/told"
_SECONDS_FOR_THE_OTHERS = 2.0


def _tell(error: UserError) -> None:
    """Print a mistake; of those that several processes make, each once and with its ranks."""
    _tell_torchrun(error)
    store = _store()
    if store is not None and dist.get_world_size() > 1:
        try:
            return _tell_among_others(error, store)
        except RuntimeError:  # it is gone
            pass
    print(f"error: {error}", file=sys.stderr, flush=True)


def _tell_among_others(error: UserError, store: dist.Store) -> None:
    # The first that comes here waits a little for the others and speaks for all. The others wait
    # for that, because torchrun ends all processes when the first one has ended.
    size, key = dist.get_world_size(), "dpk_det/mistake/{}".format
    store.set(_LEFT, str(error.status))
    store.set(key(dist.get_rank()), str(error))
    if store.add("dpk_det/mistakes", 1) > 1:
        return _wait(store, [_TOLD], 2 * _SECONDS_FOR_THE_OTHERS)
    _wait(store, [key(rank) for rank in range(size)], _SECONDS_FOR_THE_OTHERS)
    ranks: dict[str, list[str]] = {}
    for rank in range(size):
        if store.check([key(rank)]):
            ranks.setdefault(store.get(key(rank)).decode(), []).append(str(rank))
    for sentence, who in ranks.items():
        where = "" if len(who) == size else f" (rank {', '.join(who)})"
        print(f"error{where}: {sentence}", file=sys.stderr, flush=True)
    store.set(_TOLD, "")


def _wait(store: dist.Store, keys: list[str], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not store.check(keys) and time.monotonic() < until:
        time.sleep(0.02)  # its own wait() prints a page when the time is up


def _leave_stopped(stopped: Stopped) -> int:
    """Print once why all stop, unless another process's mistake is the reason; the exit status."""
    status, speaks = _status_of_others(), comm.is_main_process()
    if status not in (0, stopped.code):
        return status
    with contextlib.suppress(RuntimeError):
        if (store := _store()) is not None:
            store.set(_LEFT, str(stopped.code))
            speaks = store.add("dpk_det/stopped", 1) == 1
    if speaks:
        print(stopped.message, file=sys.stderr, flush=True)
    return stopped.code


def _status_of_others() -> int:
    """The exit status with which another process has left; 0 when none has said so."""
    with contextlib.suppress(RuntimeError):  # of a store that is gone with its process
        store = _store()
        if store is not None and store.check([_LEFT]):
            return int(store.get(_LEFT))
    return 0


def _store() -> dist.Store | None:
    # what all processes share; torchrun has it under its care, and takes it along
    if not dist.is_initialized() or parent_is_gone():
        return None
    return dist.distributed_c10d._get_default_store()  # there is no public way to it


def _tell_torchrun(error: UserError) -> None:
    # Its report of a failure ends with what stands in this file, else with advice on debugging.
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"py_callstack": f"error: {error}", "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": str(error), "extraInfo": extra}}))


# ------------------------------------------------------------------ starts


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
    """Let a config run on the CPU where there is no GPU, and there in float32; in place.

    Raises:
        UserError: for a ``MODEL.DEVICE`` that is none, or that this machine does not have.
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
