"""Continue the curves of a resumed training as if it had never stopped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventStorage, EventWriter, JSONWriter

from dpk_det.files import write_whole

METRICS = "metrics.json"
_WINDOW = 20  # steps that Detectron2's writers smooth over
# Times belong to the process that measured them, so a resumed training does not restore them.
_TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")


def recent(storage: EventStorage) -> dict[str, Any]:
    """Return the recent values of each curve except times.

    A curve has its smoothing hint and its last (value, iteration) pairs.
    """
    hints = storage.smoothing_hints()
    return {
        name: (hints[name], [(float(x), int(at)) for x, at in history.values()[-_WINDOW:]])
        for name, history in storage.histories().items()
        if name not in _TIMES
    }


def put_back(storage: EventStorage, past: dict[str, Any]) -> None:
    """Fill a new storage with the result of :func:`recent`."""
    now = storage.iter
    for name, (hint, values) in past.items():
        for value, storage.iter in values:
            storage.put_scalar(name, value, smoothing_hint=hint)
    storage.iter = now


def last_written(writers: Sequence[EventWriter]) -> int:
    """Return the last iteration in metrics.json, or -1 if no iteration is there."""
    return next((w._last_write for w in writers if isinstance(w, JSONWriter)), -1)


def go_on_after(writers: Sequence[EventWriter], folder: str, last: int) -> None:
    """Remove what a killed run wrote after iteration ``last``, and continue from there.

    Incomplete lines are removed too.
    """
    path = Path(folder) / METRICS
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            if line.endswith(b"\n") and json.loads(line)["iteration"] <= last:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # the line is incomplete
            continue
    for writer in writers:
        if isinstance(writer, JSONWriter):
            writer.close()
            write_whole(path, b"".join(kept))
            writer._file_handle = path.open("a")
        if hasattr(writer, "_last_write") and writer._last_write is not None:
            writer._last_write = last
