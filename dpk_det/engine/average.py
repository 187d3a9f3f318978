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
"""Name of the file that holds the averaged weights."""


class AverageHook(HookBase):
    """Averages a model's weights and statistics after each step: a <- d a + (1 - d) w.

    Counters and the like, which are no floating-point numbers, are those of the last step.
    Register it before what saves and evaluates.

    Args:
        model: perhaps a distilling one, perhaps in DDP. decay: d, near 1; with 0.999 some thousand
            steps count.

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
        """Start from the weights that the training starts from."""
        if not self._average.n_averaged:
            self._update()

    def after_step(self) -> None:
        """Take this step's weights in."""
        self._update()

    def _update(self) -> None:
        source = dict(_tensors(unwrap(self.trainer.model)))
        with torch.no_grad():
            self._average.update_parameters(_Like(self.model, source))
            for name, value in self.model.named_buffers():
                if not value.is_floating_point():
                    value.copy_(source[name])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the checkpoint was."""
        self._average.load_state_dict(state)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


class _Like:
    """A model's tensors in the order of another's, for torch, which pairs them by their order.

    A distilling model has more of them, its distiller's.
    """

    def __init__(self, model: nn.Module, source: dict[str, Tensor]) -> None:
        self._model, self._source = model, source

    def parameters(self) -> Iterator[Tensor]:
        return (self._source[name] for name, _ in self._model.named_parameters())

    def buffers(self) -> Iterator[Tensor]:
        return (self._source[name] for name, _ in self._model.named_buffers())
