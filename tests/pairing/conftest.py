"""Whether what a step computed is still kept afterwards."""

import gc
import weakref

import pytest
import torch


def tensors(x):
    """All tensors within dicts, lists and tuples."""
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, dict | list | tuple):
        for part in x.values() if isinstance(x, dict) else x:
            yield from tensors(part)


@pytest.fixture
def watch_tensors():
    """``watch_tensors(module, ...)``: a growing list of weak references to what these return."""

    def watch(*modules):
        made = []
        for module in modules:
            module.register_forward_hook(
                lambda *args: made.extend(weakref.ref(x) for x in tensors(args[-1]))
            )
        return made

    return watch


@pytest.fixture
def kept():
    """``kept(made)``: how many of the tensors that were watched are still alive."""

    def count(made):
        gc.collect()
        return sum(reference() is not None for reference in made)

    return count
