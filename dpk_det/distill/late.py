"""Device tensors that the host reads without waiting for the device."""

from typing import Any

import torch
from torch import Tensor


class Late:
    """A tensor's copy on the host, there by the time that somebody reads it a step later.

    To read at once, ``tensor.item()``, makes the host wait until the device has done all that was
    asked of it, and then the device waits for new work.

    Attributes:
        here: whether reading takes no wait in any case, for the tensor is on the CPU.
    """

    def __init__(self, x: Tensor) -> None:
        self.here = x.device.type == "cpu"
        # pinned by torch; other devices than CUDA's have no such copy and wait after all
        self._copy = x.detach().to("cpu", non_blocking=x.is_cuda)
        self._arrived = None
        if x.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(x.device))

    def __getstate__(self) -> dict[str, Any]:
        return {"here": self.here, "_copy": self.read(), "_arrived": None}  # no event can be copied

    def read(self) -> Tensor:
        """The copy; waits if it has not arrived yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
