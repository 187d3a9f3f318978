"""Compares distillation's gradient at the student's maps with the gradient of the student's task.

The share of a method is the norm of its gradient at the backbone's maps, divided by the norm of the
gradient of the model's own losses there. It makes the weights of different methods, losses and
teachers comparable.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LIMIT = 1e6
"""Factors stay between 1 / LIMIT and LIMIT."""
SCALE = 1024.0  # keeps small gradients from vanishing in float16; a power of two is exact


class GradShare(nn.Module):
    """Measures the share of each method at intervals, and steers it if asked to.

    Steering multiplies each method's losses by the method's own factor. Every measurement sets the
    factor to ``factor * target / share``. Shares and factors are buffers, so that checkpoints keep
    them, and are the same on all ranks. The host reads nothing back from the device.

    Args:
        methods: names of the methods.
        target: share that each method is steered to; 0: only measure.
        every: steps from one measurement to the next; 0: never measure. With a target, measurements
            are four times as frequent. Until that many steps have passed, steps 0, 1, 2, 4, ...
            measure too, because a student changes fast at first.
    """

    def __init__(self, methods: Iterable[str], target: float = 0.0, every: int = 100) -> None:
        super().__init__()
        self.methods = list(methods)
        self.target, self.every = target, every
        self.register_buffer("shares", torch.zeros(len(self.methods)))
        self.register_buffer("factors", torch.ones(len(self.methods)))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name, value in self.named_buffers():  # absent from checkpoints of earlier versions
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def is_due(self, step: int) -> bool:
        """Whether a step (counted from 0) measures."""
        if not self.every:
            return False
        if not self.target:
            return step % self.every == 0
        period = max(1, self.every // 4)
        return step % period == 0 or (step < period and step & (step - 1) == 0)

    def forward(
        self,
        step: int,
        own: Mapping[str, Tensor],
        distilled: Mapping[str, Mapping[str, Tensor]],
        maps: Iterable[Tensor],
    ) -> dict[str, dict[str, Tensor]]:
        """Measure if it is due, and steer.

        Args:
            step: the step, from 0.
            own: the model's own losses.
            distilled: method to its losses, with weights.
            maps: the maps that the losses were computed from, (B, C, H, W) each.

        Returns:
            The methods' losses, times their factors.
        """
        maps = [x for x in maps if x.requires_grad]
        if maps and self.is_due(step):
            unsteered = self.measure(own, distilled, maps)
            self.shares.copy_(unsteered * self.factors)  # the share under the factors so far
            if self.target > 0:
                usable = unsteered.isfinite() & (unsteered > 0)
                wanted = (self.target / unsteered).clamp(1 / LIMIT, LIMIT)
                self.factors.copy_(wanted.where(usable, self.factors))
        if not self.target:
            return {method: dict(losses) for method, losses in distilled.items()}
        return {
            method: {name: factor * loss for name, loss in distilled[method].items()}
            for method, factor in zip(self.methods, self.factors.clone(), strict=True)
        }

    def metrics(self) -> dict[str, Tensor]:
        """``NAME/grad_share`` as last measured, before factors changed, and ``NAME/factor``."""
        if not self.every:
            return {}
        found = {"grad_share": self.shares.clone()}
        if self.target > 0:
            found["factor"] = self.factors.clone()
        return {
            f"{method}/{what}": value
            for what, values in found.items()
            for method, value in zip(self.methods, values, strict=True)
        }

    def measure(
        self,
        own: Mapping[str, Tensor],
        distilled: Mapping[str, Mapping[str, Tensor]],
        maps: list[Tensor],
    ) -> Tensor:
        """(M,) the share of each of M methods, mean over ranks; 0 where it is undefined."""
        task = _norm(own, maps)
        shares = torch.stack([_norm(distilled[method], maps) for method in self.methods]) / task
        shares = shares.nan_to_num(0, 0, 0)  # a task without a gradient has nothing to share
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(shares)
            shares = shares / torch.distributed.get_world_size()
        return shares


def _norm(losses: Mapping[str, Tensor], maps: list[Tensor]) -> Tensor:
    """Norm of the gradient of the sum of all losses, over all maps together."""
    total = SCALE * sum(loss for loss in losses.values())
    if not isinstance(total, Tensor) or not total.requires_grad:
        return maps[0].new_zeros(())
    grads = torch.autograd.grad(total, maps, retain_graph=True, allow_unused=True)
    squares = [grad.float().square().sum() for grad in grads if grad is not None]
    return torch.stack(squares).sum().sqrt() if squares else maps[0].new_zeros(())
