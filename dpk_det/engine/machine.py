"""The machine that a training runs on, and the memory that the training uses."""

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import detectron2
import torch


def describe_machine(on_gpu: bool | None = None) -> dict[str, Any]:
    """Return the platform, cores, threads of this process, GPU (or None) and versions.

    Args:
        on_gpu: whether the work runs on the GPU, which is then named. None: whether this process
            has used one so far, because a machine with a GPU may train on its CPU.
    """
    on_gpu = torch.cuda.is_initialized() if on_gpu is None else on_gpu
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
    }


def peak_memory_mb() -> float:
    """Return the peak memory so far, in MB of 2^20 bytes.

    If this process uses a GPU, this is the memory that torch has allocated there. Otherwise it is
    the RAM of the whole process, with Python, its libraries and the images.
    """
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    # This is only for other systems: on Linux the value starts from the peak of the process that
    # started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
