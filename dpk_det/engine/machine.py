"""The machine that a training runs on, and the memory that it takes."""

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import detectron2
import torch


def describe_machine() -> dict[str, Any]:
    """Platform, cores, threads of this process, GPU (None without one) and versions."""
    has_gpu = torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
    }


def peak_memory_mb() -> float:
    """The most memory so far, in MB of 2^20 bytes.

    On a GPU: what torch has allocated there. Else what the whole process has held in RAM: Python,
    its libraries and the images too.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    # Elsewhere than on Linux. Not there: on Linux this begins with the peak of the process that
    # started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
