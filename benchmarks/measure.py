"""Measures time, memory and device synchronisations of any function, for all benchmarks."""

import contextlib
import json
import math
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Name = TypeVar("Name", bound=Hashable)
Function = Callable[[], Any]


class Times(NamedTuple):
    """Seconds of one call: by the clock, and of this process on all its processors."""

    wall: float
    cpu: float


def interleave(
    functions: Mapping[Name, Function], repeats: int, warmup: int
) -> dict[Name, list[Times]]:
    """Time several functions in rounds: each once per round, in a new random order.

    A busy machine slows all functions alike, so ratios within a round keep their meaning when
    seconds do not. Before each call torch's generators are seeded with the round's number, so that
    random numbers (for proposals, say) are the same for all functions.

    Args:
        functions: functions by name.
        repeats: number of rounds that count.
        warmup: number of rounds before them that do not count.
    """
    order, names = random.Random(0), list(functions)
    times: dict[Name, list[Times]] = {name: [] for name in names}
    for turn in range(-warmup, repeats):
        order.shuffle(names)
        for name in names:
            torch.manual_seed(turn + warmup)
            taken = measure_time(functions[name])
            if turn >= 0:
                times[name].append(taken)
    return times


def measure_time(function: Function) -> Times:
    """Time one call; wait before and after until the GPU's queue is empty."""
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    synchronise()
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(function: Function, device: str) -> int:
    """Return the most bytes that tensors held during a call, beyond those they held before it.

    On a GPU the figure is ``torch.cuda.max_memory_allocated``. On a CPU it comes from torch's
    profiler, which reports every allocation of a tensor, but not what kernels allocate themselves
    (oneDNN's scratch). Both are the same at each call, even on a busy machine.

    Args:
        function: must not free earlier tensors: on a CPU this would not be seen.
        device: "cuda" or "cpu".
    """
    if device == "cuda":
        synchronise()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        write_trace(function, path, profile_memory=True)
        events = json.loads(path.read_text())["traceEvents"]
    changes = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0]
    held = peak = 0
    for change in sorted(changes, key=lambda e: e["ts"]):
        held += change["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def write_trace(function: Function, path: Path, **options: Any) -> None:
    """Write a call's profile as a Chrome trace; options go to :class:`torch.profiler.profile`."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, **options) as profiler:
        function()
        synchronise()
    profiler.export_chrome_trace(str(path))


def operator_times(function: Function, rounds: int = 5) -> dict[str, tuple[float, float]]:
    """Return each operator's own seconds and number of calls, in one call of the function.

    They are means over the rounds, from torch's profiler. On a GPU it is the time of the kernels,
    for which the host does not wait, without the time in which the host launches them.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(rounds):
            function()
        synchronise()
    attribute = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return {
        x.key: (getattr(x, attribute) / 1e6 / rounds, x.count / rounds)
        for x in profiler.key_averages()
    }


def count_flops(function: Function) -> int:
    """Count the floating point operations of a call; they are the same at each call.

    Matrix products, convolutions, attention and their gradients count; a multiplication and an
    addition count as two.
    """
    # torch counts the gradients of a grouped convolution as if it were dense
    gradients = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=gradients) as counter:
        function()
    return counter.get_total_flops()


def _convolution_backward_flops(
    grad_shape: Sequence[int],
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *args: Any,
    out_shape: Sequence[Any] | None = None,
    **kwargs: Any,
) -> int:
    transposed, wanted = args[4], args[7]  # aten.convolution_backward has them after the shapes
    places = input_shape if transposed else grad_shape
    once = 2 * places[0] * math.prod(places[2:]) * math.prod(weight_shape)
    return once * (wanted[0] + wanted[1])  # gradients of the input and of the weights


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors; those that share memory count once."""
    return sum({x.data_ptr(): x.nbytes for x in tensors}.values())


def count_syncs(function: Function, device: str) -> Counter[str]:
    """Count where the host waits for the device during a call: ``file:line`` -> number of times.

    On a GPU torch reports it (``set_sync_debug_mode``). On a CPU nothing waits. There the count is
    of operations that would wait on a GPU: those that hand a value to Python (item, tolist, numpy,
    a condition) and those whose output size depends on values (nonzero, indexing by bools). This
    count misses copies to the GPU, and includes values that a GPU machine too keeps on the CPU.
    """
    if device == "cuda":
        with _gpu_warnings() as caught:
            function()
        lines = [
            f"{_short(x.filename)}:{x.lineno}" for x in caught if "synchroniz" in str(x.message)
        ]
        return Counter(lines)
    counts: Counter[str] = Counter()
    with _Conversions(counts), _Operations(counts):
        function()
    return counts


@contextlib.contextmanager
def _gpu_warnings() -> Iterator[list[warnings.WarningMessage]]:
    synchronise()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode("default")


class _Operations(TorchDispatchMode):
    """Counts operations that read a value."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount")

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_bools = name in ("index", "index_put_", "_index_put_impl_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if by_bools or name in self.WAITING:
            self.counts[_caller()] += 1
        return func(*args, **(kwargs or {}))


class _Conversions(TorchFunctionMode):
    """Counts conversions that :class:`_Operations` cannot see."""

    WAITING = (Tensor.tolist, Tensor.numpy, Tensor.__array__)

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.WAITING:
            self.counts[_caller()] += 1
        return func(*args, **(kwargs or {}))


def _caller() -> str:
    here, torch_folder = __file__, str(Path(torch.__file__).parent)
    for frame, line in traceback.walk_stack(sys._getframe()):
        name = frame.f_code.co_filename
        if name != here and not name.startswith(torch_folder):
            return f"{_short(name)}:{line}"
    return "?"


def _short(name: str) -> str:
    """Shorten a path so that it starts with the package's folder."""
    parts = Path(name).parts
    for package in ("site-packages", "dpk_det"):
        if package in parts[:-1]:
            at = len(parts) - 1 - parts[::-1].index(package)
            return "/".join(parts[at + (package == "site-packages") :])
    return "/".join(parts[-2:])
