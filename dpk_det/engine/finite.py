"""Stop trainings whose numbers became infinite or NaN, with a clear message and no checkpoint."""

import math
import re
from collections.abc import Mapping

import torch
from torch import nn

from dpk_det.errors import UserError

DIVERGED = "Training stopped"
"""The first words of the message that ends a training with infinite or NaN numbers."""

# The form in which Detectron2 writes a loss into its FloatingPointError.
_LOSS = re.compile(r"'([^']+)': (?:np\.\w+\()?(-?inf|nan)\b")


def require_finite(model: nn.Module, step: int, folder: str) -> None:
    """Check weights before they are saved.

    Args:
        model: the model without a wrapper.
        step: the number of completed steps.
        folder: the folder of the checkpoints.

    Raises:
        UserError: when weights are infinite or NaN. The error names the first ones and the step.
    """
    names = _not_finite(_sizes(model))
    if names:
        raise UserError(
            f"{DIVERGED} after step {step}, whose update made weights infinite or NaN "
            f"({_enumerate(names)}); {_remedy(folder)}."
        )


def explain(error: Exception, model: nn.Module, step: int, folder: str) -> UserError | None:
    """Explain an exception that ended a training step.

    Args:
        error: any exception; Detectron2 raises FloatingPointError for losses and proposals.
        model: as for :func:`require_finite`.
        step: the number of the step that failed, counted from 1.
        folder: as for :func:`require_finite`.

    Returns:
        The error to raise. None if the exception is a bug: it is no FloatingPointError, and the
        weights are finite.
    """
    said, sizes = " ".join(str(error).split()).rstrip("."), _sizes(model)
    names = _not_finite(sizes)
    losses = [f"{name} is {value}" for name, value in _LOSS.findall(said)]
    if losses:
        what = ", ".join(losses)
    elif isinstance(error, FloatingPointError):
        what = said
    elif names:
        what = f"{type(error).__name__} {said}".rstrip()
    else:
        return None
    if names:
        why = f" (weights had become infinite or NaN before: {_enumerate(names)})"
    elif losses:
        why = ""
    else:
        largest = max(sizes, key=sizes.get)
        why = (
            f" (the weights are finite, the largest is {sizes[largest]:.3g} in {largest}: if that "
            "is usual, look at the images and boxes of that step)"
        )
    return UserError(f"{DIVERGED} in step {step}: {what}{why}; {_remedy(folder)}.")


def _sizes(model: nn.Module) -> dict[str, float]:
    # The largest magnitude of each weight and of running statistics. Other buffers, such as
    # attention masks, may rightly hold infinity.
    weights = {k: v.detach() for k, v in model.named_parameters() if v.numel()}
    weights |= {k: v for k, v in model.named_buffers() if k.rpartition(".")[2][:8] == "running_"}
    if not weights:
        return {}
    sizes = torch.stack([x.abs().amax().float() for x in weights.values()])  # NaN stays NaN
    return dict(zip(weights, sizes.tolist(), strict=True))


def _not_finite(sizes: Mapping[str, float]) -> list[str]:
    return [name for name, size in sizes.items() if not math.isfinite(size)]


def _enumerate(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}"


def _remedy(folder: str) -> str:
    return (
        f"what it saved before is kept in {folder}: resume from there with a lower SOLVER.BASE_LR "
        "or loss weight"
    )
