"""Saves, restores and temporarily seeds the random generators of Python, numpy and torch."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def get_state() -> State:
    """Return the state of this process's generators; torch.load reads it without running code.

    If CUDA was used, the generator of the current GPU is included.
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
    """Restore a state from :func:`get_state`; the GPU's part only if there is a GPU."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_all(*key: int) -> None:
    """Seed all generators with numbers >= 0. Different numbers give unrelated sequences."""
    seeds = np.random.SeedSequence(key).generate_state(3)
    _seed_on_cpu(seeds)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(int(seeds[2]))


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Restore the generators at the end: numbers drawn within do not change later ones."""
    state = get_state()
    try:
        yield
    finally:
        set_state(state)


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Like :func:`kept`, and numbers drawn within on the CPU depend only on the key.

    It is made for loading data: it does not touch the GPU's generator, and takes 0.1 ms.
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
