"""Finished trainings that nobody trained."""

import json
from collections.abc import Callable
from typing import Any

import pytest

MACHINE = {
    "platform": "Linux",
    "cores": 2,
    "threads": 1,
    "gpu": None,
    "python": "3.11",
    "torch": "2.14",
    "detectron2": "0.6",
}


@pytest.fixture
def finish() -> Callable[..., None]:
    """``finish(run, ap, ...)`` leaves what a training leaves at its end."""

    def finish(run: Any, ap: float | None, **other: Any) -> None:
        run.folder.mkdir(parents=True)
        results = {
            "iterations": 3,
            "parameters": 1234567,
            "distiller_parameters": 0,
            "seconds_per_step": 0.1,
            "peak_memory_mb": 200.0,
            "machine": MACHINE,
            "results": {"bbox": {"AP": ap, "AP50": None if ap is None else ap + 20}},
        }
        (run.folder / "results.json").write_text(json.dumps(results | other))

    return finish
