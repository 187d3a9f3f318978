"""Time, memory and device synchronisations of any function: what the benchmarks share."""

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
    """Of one call: seconds on the clock, and of this process on all its processors."""

    wall: float
    cpu: float


def interleave(
    functions: Mapping[Name, Function], repeats: int, warmup: int
) -> dict[Name, list[Times]]:
    """Time several functions in rounds, each once a round, in an order drawn anew.

    What a busy machine takes away it takes from all alike, so ratios within a round keep their
    meaning where seconds do not. Before each call torch's generators are seeded with the round's
    number: what is drawn at random (proposals, say) is then the same for all.

    Args:
        functions: by name. repeats: rounds that count. warmup: rounds before them that do not.
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
    """Time one call, the GPU's queue emptied before and after."""
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    synchronise()
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(function: Function, device: str) -> int:
    """The most bytes that tensors held during a call, beyond those that they held before it.

    On a GPU by ``torch.cuda.max_memory_allocated``. On a CPU by torch's profiler, which reports
    every allocation of a tensor; what kernels take for themselves (oneDNN's scratch) is not seen.
    Either is the same at each call, and on a busy machine too.

    Args:
        function: leaves what was there before alone: on a CPU it is not seen to be freed.
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
    """Write a call's profile as a Chrome trace; options: of :class:`torch.profiler.profile`."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, **options) as profiler:
        function()
        synchronise()
    profiler.export_chrome_trace(str(path))


def operator_times(function: Function, rounds: int = 5) -> dict[str, tuple[float, float]]:
    """What each operator takes in a call: seconds of its own, and how often it is called.

    Means over the rounds, as torch's profiler sees them: on a GPU the time of its kernels, which
    the host does not wait for, and not what the host takes to ask for them.
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
    """Floating point operations of a call: matrix products, convolutions, attention and their
    gradients, a multiplication and an addition counting two. The same at each call.
    """
    # torch counts the gradients of a convolution in groups as if it were dense
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
    transposed, wanted = args[4], args[7]  # of aten.convolution_backward, behind the shapes
    places = input_shape if transposed else grad_shape
    once = 2 * places[0] * math.prod(places[2:]) * math.prod(weight_shape)
    return once * (wanted[0] + wanted[1])  # gradients of the input and of the weights


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """What tensors take, those that share memory counted once."""
    return sum({x.data_ptr(): x.nbytes for x in tensors}.values())


def count_syncs(function: Function, device: str) -> Counter[str]:
    """Where the host waits for the device during a call, ``file:line`` to how many times.

    On a GPU torch itself tells (``set_sync_debug_mode``). On a CPU there is nothing to wait for;
    what is counted there are the operations that would: those that hand a value to Python (item,
    tolist, numpy, a condition) and those whose output's size depends on values (nonzero, indexing
    by bools). Copies to the GPU do not show there, and values that stay on the CPU on a GPU machine
    too are counted nevertheless.
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
    """Counts conversions that no operation is seen of."""

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
    """A path from the package's folder on."""
    parts = Path(name).parts
    for package in ("site-packages", "dpk_det"):
        if package in parts[:-1]:
            at = len(parts) - 1 - parts[::-1].index(package)
            return "/".join(parts[at + (package == "site-packages") :])
    return "/".join(parts[-2:])
