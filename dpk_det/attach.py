"""Makes a built Detectron2 model distil, by forward hooks: no line of its forward is copied."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage
from torch import nn

from dpk_det.config import method_arguments
from dpk_det.distill import Distiller, Features, build_distiller
from dpk_det.errors import UserError
from dpk_det.pairing import pair_levels
from dpk_det.teacher import Teacher, build_teacher, feature_strides


class Distillation:
    """The bond between a model and its teacher; :meth:`remove` dissolves it.

    Attributes:
        model, teacher, distiller: the three parties.
    """

    def __init__(self, model: nn.Module, teacher: Teacher, distiller: Distiller) -> None:
        self.model, self.teacher, self.distiller = model, teacher, distiller
        self._maps: dict[str, Any] | None = None
        self._hooks = [
            model.backbone.register_forward_hook(self._see_maps),
            model.register_forward_hook(self._add_losses, with_kwargs=True),
        ]
        model.distiller = distiller.to(next(model.parameters()).device)
        model.distillation = self  # no module, so it adds nothing to the model's state

    def remove(self) -> None:
        """Take hooks and distiller off: what is left is the plain model."""
        for hook in self._hooks:
            hook.remove()
        del self.model.distiller, self.model.distillation

    def _see_maps(self, backbone: nn.Module, inputs: Any, maps: dict[str, Any]) -> None:
        if self._learns():
            self._maps = maps

    def _learns(self) -> bool:
        # without gradients a model in training mode is only being looked at, by PreciseBN say
        return self.model.training and torch.is_grad_enabled()

    def _add_losses(self, model: nn.Module, inputs: tuple, kwargs: dict, losses: Any) -> Any:
        if not self._learns():
            return None
        batched_inputs, maps = (*inputs, *kwargs.values())[0], self._maps
        self._maps = None  # the graph must not outlive the step
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        student = Features(maps, feature_strides(model.backbone), sizes)
        distilled = self.distiller(student, self.teacher(batched_inputs), batched_inputs)
        self._log()
        return {**losses, **distilled}

    def _log(self) -> None:
        if not self.distiller.metrics:
            return
        try:
            storage = get_event_storage()
        except AssertionError:  # a loop of somebody's own, without Detectron2's event storage
            return
        names, values = zip(*self.distiller.metrics.items(), strict=True)
        storage.put_scalars(
            **dict(zip(names, torch.stack(values).tolist(), strict=True)), smoothing_hint=False
        )


def attach_distiller(model: nn.Module, teacher: Teacher, distiller: Distiller) -> Distillation:
    """Make a model distil: its training forward returns the distiller's losses beside its own.

    Evaluation is untouched. The distiller becomes ``model.distiller``, so that optimizer,
    DistributedDataParallel and checkpoints take it along; attach it before building those. The
    teacher becomes no part of the model.

    Args:
        model: any Detectron2 model with a ``backbone``, whose training forward takes a list of
            dicts and returns a dict of losses.
        teacher: from :func:`~dpk_det.teacher.build_teacher`.
        distiller: on the levels that :func:`~dpk_det.pairing.pair_levels` found.

    Raises:
        UserError: when the model distils already or has no backbone.
    """
    if hasattr(model, "distillation"):
        raise UserError(f"This {type(model).__name__} distils already: remove() that one first.")
    if not hasattr(model, "backbone"):
        raise UserError(
            f"{type(model).__name__} has no 'backbone' to see features of: attach to one that has."
        )
    return Distillation(model, teacher, distiller)


def attach_from_config(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Attach what ``cfg.DISTILL`` describes to a model and return that model.

    Raises:
        UserError: as building the teacher, pairing the levels or building the distiller do.
    """
    teacher = build_teacher(cfg)
    levels = pair_levels(
        model.backbone.output_shape(), teacher.model.backbone.output_shape(), cfg.DISTILL.LEVELS
    )
    attach_distiller(model, teacher, build_distiller(method_arguments(cfg), levels))
    return model
