"""An exponential moving average of the student's weights."""

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpk_det.pairing.ddp import unwrap

AVERAGE = "model_ema"
"""Name of the file with the averaged weights."""


class AverageHook(HookBase):
    """Averages a model's weights and statistics after each step: a <- d a + (1 - d) w.

    Counters and other values that are not floating-point are copied from the last step.
    Register the hook before the hooks that save and evaluate.

    Args:
        model: a plain or distilling model, with or without DDP.
        decay: d, near 1; 0.999 averages over about a thousand steps.

    Attributes:
        model: the plain model with the averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        twin = copy.deepcopy(unwrap(model))
        if hasattr(twin, "distillation"):
            twin.distillation.remove()
        self._average = AveragedModel(
            twin.eval(), multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True
        )
        self.model = self._average.module

    def before_train(self) -> None:
        """Start the average from the weights that the training starts from."""
        if not self._average.n_averaged:
            self._update()

    def after_step(self) -> None:
        """Add this step's weights to the average."""
        self._update()

    def _update(self) -> None:
        source = dict(_tensors(unwrap(self.trainer.model)))
        with torch.no_grad():
            self._average.update_parameters(_Like(self.model, source))
            for name, value in self.model.named_buffers():
                if not value.is_floating_point():
                    value.copy_(source[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self._average.load_state_dict(state)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


class _Like:
    """Gives one model's tensors in the order of another, because torch pairs tensors by order.

    A distilling model has additional tensors, those of its distiller.
    """

    def __init__(self, model: nn.Module, source: dict[str, Tensor]) -> None:
        self._model, self._source = model, source

    def parameters(self) -> Iterator[Tensor]:
        return (self._source[name] for name, _ in self._model.named_parameters())

    def buffers(self) -> Iterator[Tensor]:
        return (self._source[name] for name, _ in self._model.named_buffers())
