"""The random numbers of Python, numpy and torch: kept, put back, and seeded for a while."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def get_state() -> State:
    """The state of this process's generators, as torch.load reads it back without running code.

    The GPU's, of the device in use, is among them where CUDA was used.
    """
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": (version, torch.tensor(numbers), gauss),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_state(state: State) -> None:
    """Put back what :func:`get_state` gave, the GPU's where there is one."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_all(*key: int) -> None:
    """Seed all generators by numbers from 0 on; other numbers give unrelated sequences."""
    seeds = np.random.SeedSequence(key).generate_state(3)
    _seed_on_cpu(seeds)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(int(seeds[2]))


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """What is drawn within leaves no trace in what is drawn afterwards."""
    state = get_state()
    try:
        yield
    finally:
        set_state(state)


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """The same, and what is drawn within, on the CPU, depends on the key alone.

    Made for the loading of data: it leaves the GPU alone, and costs 0.1 ms.
    """
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_on_cpu(np.random.SeedSequence(key).generate_state(3))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)


def _seed_on_cpu(seeds: np.ndarray) -> None:
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(int(seeds[2]))  # torch.manual_seed seeds GPUs too
