"""Restore an optimizer and its schedule from a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dpk_det.errors import UserError


def parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Return the parameters' names in the order in which an optimizer numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def load_momenta(
    optimizer: Optimizer, saved: Mapping[str, Any], before: Sequence[str], now: Sequence[str]
) -> None:
    """Load each parameter's state from a checkpoint; the optimizer keeps its rates and decays.

    Args:
        optimizer: changed in place.
        saved: the ``state_dict`` of the checkpoint's optimizer.
        before: the parameters' names, in the order of the checkpoint's optimizer.
        now: the parameters' names, in the order of this optimizer.

    Raises:
        UserError: when the two optimizers have different parameters.
    """
    if sorted(before) != sorted(now):
        strange = sorted({*before} ^ {*now})
        raise UserError(
            f"The checkpoint's optimizer has {len(before)} parameters but this one {len(now)} "
            f"({', '.join(strange[:3])}): resume with the config that it was begun with, or choose "
            "another OUTPUT_DIR."
        )
    place = {name: i for i, name in enumerate(now)}
    optimizer.load_state_dict(
        {
            "state": {place[before[i]]: state for i, state in saved["state"].items()},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )


def set_schedule(scheduler: LRScheduler, step: int) -> None:
    """Move a new scheduler and its optimizer's learning rates to a step."""
    scheduler.last_epoch = step
    scheduler._last_lr = scheduler.get_lr()
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate
