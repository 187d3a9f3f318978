"""In which environments trainings may run side by side."""

import os
from collections.abc import Sequence

import torch

from dpk_det.errors import UserError


def make_slots(
    workers: int | None = None, threads: int = 1, gpus: Sequence[str] = ()
) -> list[dict[str, str]]:
    """The environments in which trainings may run side by side, one each at a time.

    Args:
        workers: how many. By default one a GPU; without a GPU two, on a machine with two cores.
        threads: CPU threads of each.
        gpus: as CUDA_VISIBLE_DEVICES counts or names them, dealt out in turn. By default all that
            are visible.

    Raises:
        UserError: when there is no GPU of those asked for, or a number is not positive.
    """
    for option, number in (("--workers", workers), ("--threads", threads)):
        if number is not None and number < 1:
            raise UserError(f"{option} is {number}: give a number from 1 on.")
    has_gpu = torch.cuda.is_available()
    if gpus and not has_gpu:
        raise UserError("--gpus is given but torch finds no GPU here: leave it out.")
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        for gpu in gpus:
            if gpu.isdecimal() and int(gpu) >= torch.cuda.device_count():
                raise UserError(
                    f"--gpus names GPU {gpu} but this machine has {torch.cuda.device_count()}, "
                    "counted from 0: name those."
                )
    if has_gpu and not gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if workers is None:
        workers = len(gpus) or min(2, os.cpu_count() or 1)
    slots = []
    for i in range(workers):
        slot = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if gpus:
            slot["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
        slots.append(slot)
    return slots
