"""Which of several processes speaks of a mistake, and with which status all of them end."""

import threading

import pytest
import torch.distributed as dist

from dpk_det.engine.ends import exit_on_user_error
from dpk_det.errors import UserError


def end(error, statuses):
    """Runs a command that ends with an error; its exit status is added to the others."""
    try:
        with exit_on_user_error():
            raise error
    except SystemExit as e:
        statuses.append(e.code)


@pytest.fixture
def ranks(monkeypatch, capsys):
    """``ranks(sentence, ...)``: what is printed where each rank makes that mistake; "": none."""
    # Threads stand for processes, and a store in memory for the one that these share: processes
    # would take seconds to start, and cannot be made to meet in every order. test_torchrun.py has
    # a mistake in a process of torchrun.
    store, here = dist.HashStore(), threading.local()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(dist, "get_rank", lambda: here.rank)

    def run(*sentences):
        monkeypatch.setattr(dist, "get_world_size", lambda: len(sentences))
        statuses = []

        def make_mistake(rank):
            here.rank = rank
            end(UserError(sentences[rank]), statuses)

        threads = [
            threading.Thread(target=make_mistake, args=(rank,))
            for rank, sentence in enumerate(sentences)
            if sentence
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        end(RuntimeError("a collective's, whose partner has left"), statuses)
        assert statuses == [2] * (len(threads) + 1)  # the rest leave with it
        return capsys.readouterr().err.splitlines()

    return run


def test_a_mistake_of_all_ranks_is_said_once(ranks):
    assert ranks("wrong", "wrong", "wrong") == ["error: wrong"]


def test_a_mistake_of_another_rank_than_the_first_is_said(ranks):
    assert ranks("", "wrong", "") == ["error (rank 1): wrong"]


def test_different_mistakes_are_said_with_their_ranks(ranks):
    assert ranks("wrong", "bad", "wrong") == ["error (rank 0, 2): wrong", "error (rank 1): bad"]
