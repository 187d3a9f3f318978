"""Copies on the host, read without a wait."""

import copy
import pickle

import torch

from dpk_det.distill.late import Late


def test_a_copy_is_read_as_it_was_and_carries_no_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    late = Late(x * 3)
    assert late.here
    assert late.read().tolist() == [3, 6] and not late.read().requires_grad


def test_it_is_copied_and_pickled_as_what_it_reads():
    class Event:
        """As a GPU's: there is no copy of it."""

        waited = 0

        def synchronize(self):
            self.waited += 1

        def __reduce_ex__(self, protocol):
            raise TypeError

    late = Late(torch.ones(2))
    # there is no GPU here: what a copy from one waits for is put in by hand
    late._arrived = event = Event()
    for twin in (copy.deepcopy(late), pickle.loads(pickle.dumps(late))):
        assert twin.read().tolist() == [1, 1] and twin.read() is not late.read()
    assert event.waited == 4  # a copy is made of what has arrived
