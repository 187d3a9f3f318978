"""What the benchmarks measure by: checked on functions whose cost is known."""

import time

import pytest
import torch
from measure import (
    count_flops,
    count_syncs,
    interleave,
    measure_time,
    peak_bytes,
    tensor_bytes,
    write_trace,
)
from torch import nn

KIB = 256  # floats


def test_the_peak_is_of_what_is_held_at_one_time():
    def hold_three_and_then_two():
        first = torch.empty(100 * KIB)
        second = torch.empty(200 * KIB)
        del first
        third = torch.empty(50 * KIB)
        return second, third

    held_before = torch.empty(1000 * KIB)  # does not count
    assert peak_bytes(hold_three_and_then_two, "cpu") == 300 * 1024
    assert len(held_before)


def test_shared_memory_is_counted_once():
    x = torch.zeros(10)
    assert tensor_bytes([x, x.view(2, 5), torch.zeros(3, dtype=torch.float64)]) == 40 + 24


def test_a_product_and_its_gradients_are_counted():
    x, w = torch.randn(5, 7, requires_grad=True), torch.randn(7, 11, requires_grad=True)
    assert count_flops(lambda: (x @ w).sum().backward()) == 3 * 2 * 5 * 7 * 11
    assert count_flops(lambda: x.detach() @ w) == 2 * 5 * 7 * 11


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_flops_of_convolutions_in_groups_and_of_their_gradients(groups):
    x = torch.randn(3, 8, 6, 5, requires_grad=True)
    down = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    once = 2 * 3 * (3 * 3) * 16 * (8 // groups) * 9  # images x places x outputs x inputs x window
    assert count_flops(lambda: down(x).sum().backward()) == 3 * once
    assert count_flops(lambda: down(x.detach()).sum().backward()) == 2 * once
    up = nn.ConvTranspose2d(8, 16, 3, stride=2, groups=groups)
    once = 2 * 3 * (6 * 5) * 8 * (16 // groups) * 9
    assert count_flops(lambda: up(x).sum().backward()) == 3 * once


def test_waiting_on_the_clock_takes_no_processor():
    taken = measure_time(lambda: time.sleep(0.1))
    assert taken.wall >= 0.1
    assert taken.cpu < taken.wall / 2


def test_every_function_is_called_once_a_round_and_draws_the_same():
    calls = []

    def draw(name):
        calls.append((name, torch.rand(()).item()))

    names = "abcdef"
    times = interleave({x: lambda x=x: draw(x) for x in names}, repeats=4, warmup=2)
    assert {name: len(x) for name, x in times.items()} == dict.fromkeys(names, 4)
    rounds = [calls[i : i + 6] for i in range(0, len(calls), 6)]
    assert len(rounds) == 6
    assert all({name for name, _ in x} == set(names) for x in rounds)
    drawn = [{value for _, value in x} for x in rounds]
    assert all(len(values) == 1 for values in drawn)  # the same for all in a round
    assert len(set.union(*drawn)) == 6  # another one each round
    assert len({tuple(name for name, _ in x) for x in rounds}) > 1  # in another order


WAITING = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "condition": lambda x: bool(x.sum() > 0),
    "nonzero": lambda x: x.nonzero(),
    "bools": lambda x: x[x > 0],
}


@pytest.mark.parametrize("what", WAITING)
def test_what_needs_a_value_waits(what):
    x = torch.ones(3)
    counts = count_syncs(lambda: WAITING[what](x), "cpu")
    assert sum(counts.values()) == 1
    (place,) = counts
    assert place.startswith("benchmarks/test_measure.py:")


def test_the_line_that_waits_is_named():
    def wait():
        x = torch.ones(3)
        return [x.sum().item() for _ in range(2)]

    line = wait.__code__.co_firstlineno + 2
    assert count_syncs(wait, "cpu") == {f"benchmarks/test_measure.py:{line}": 2}


def test_what_needs_no_value_does_not_wait():
    def work():
        x = torch.ones(4, 4, requires_grad=True)
        y = torch.where(x > 0, x @ x, 0).index_select(0, torch.tensor([0, 1]))
        y[torch.tensor([1, 0])].sum().backward()
        return x.grad

    assert not count_syncs(work, "cpu")


def test_a_trace_names_the_operations(tmp_path):
    x = torch.ones(3, 3)
    write_trace(lambda: x @ x, tmp_path / "trace.json")
    assert "aten::mm" in (tmp_path / "trace.json").read_text()
