"""Write figures to a file, with a description of the machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dpk_det.engine.machine import describe_machine
from dpk_det.files import write_whole


def write_results(path: Path, summary: Mapping[str, Any]) -> None:
    """Write figures as JSON, whole or not at all, with a description of the machine.

    NaN becomes null, because JSON has no NaN. Detectron2 returns NaN if nothing was measured.

    Raises:
        UserError: when the disk is full.
    """
    content = _without_nan({**summary, "machine": describe_machine()})
    write_whole(path, json.dumps(content, indent=2) + "\n")


def count_parameters(module: nn.Module | None) -> int:
    """Count the numbers in a module's parameters, frozen ones included; 0 for None."""
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def _without_nan(results: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: _without_nan(v) if isinstance(v, Mapping) else None if v != v else v
        for k, v in results.items()
    }
