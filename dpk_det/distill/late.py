"""Device tensors that the host reads without waiting for the device."""

from typing import Any

import torch
from torch import Tensor


class Late:
    """A tensor's copy on the host, which has arrived when somebody reads it a step later.

    Reading at once by ``tensor.item()`` makes the host wait until the device has finished all its
    work. After that, the device waits for new work.

    Attributes:
        here: whether reading never waits, because the tensor is on the CPU.
    """

    def __init__(self, x: Tensor) -> None:
        self.here = x.device.type == "cpu"
        # torch pins this copy; devices other than CUDA have no asynchronous copy and wait here
        self._copy = x.detach().to("cpu", non_blocking=x.is_cuda)
        self._arrived = None
        if x.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(x.device))

    def __getstate__(self) -> dict[str, Any]:
        return {"here": self.here, "_copy": self.read(), "_arrived": None}  # events have no copy

    def read(self) -> Tensor:
        """Return the copy, and wait if it has not arrived yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
