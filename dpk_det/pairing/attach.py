"""Makes a built Detectron2 model distil, by forward hooks: no line of its forward is copied."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from dpk_det.architectures import takes_tensors
from dpk_det.distill import Distiller, Features
from dpk_det.distill.late import Late
from dpk_det.distill.registry import join_losses
from dpk_det.errors import UserError
from dpk_det.pairing.batches import box_targets, image_labels, image_sizes
from dpk_det.pairing.heads import ComparedHeads
from dpk_det.pairing.teacher import Teacher, feature_strides, prepare_alike


class Distillation:
    """The bond between a model and its teacher; :meth:`remove` dissolves it.

    A deep copy of the model distils by itself: it has its own hooks and distiller, and shares the
    teacher, which nothing changes. A pickled model takes its teacher along.

    Attributes:
        model, teacher, distiller: the three parties.
        max_iter: steps of the training, by which ``distiller.progress`` is told from Detectron2's
            event storage; None: left to the caller.
        warmup_iters: steps over which the distiller's losses rise to their full weight.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher,
        distiller: Distiller,
        max_iter: int | None = None,
        warmup_iters: int = 0,
    ) -> None:
        self.model, self.teacher, self.distiller = model, teacher, distiller
        self.max_iter, self.warmup_iters = max_iter, warmup_iters
        self._maps: dict[str, Any] | None = None
        # what the student's backbone was given, where the teacher's would be given the same
        self._images: Tensor | None = None
        self._alike = not teacher.flip_channels and prepare_alike(model, teacher.model)
        self._metrics: tuple[list[str], Late] | None = None
        distiller.to(next(model.parameters()).device)
        self._heads = None
        if distiller.heads:
            self._heads = ComparedHeads(model, teacher.model, distiller.heads)
        self._hooks = [
            model.register_forward_pre_hook(self._forget),
            model.backbone.register_forward_hook(self._see_maps),
            model.register_forward_hook(self._add_losses, with_kwargs=True),
            # after an error as well: what was seen holds the step's graph, and its memory
            model.register_forward_hook(self._forget, always_call=True),
        ]
        model.distiller = distiller
        model.distillation = self  # no module, so it adds nothing to the model's state

    def remove(self) -> None:
        """Take hooks and distiller off: what is left is the plain model."""
        for hook in self._hooks:
            hook.remove()
        if self._heads:
            self._heads.remove()
        del self.model.distiller, self.model.distillation

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": None, "_images": None}  # a graph cannot be copied

    def __deepcopy__(self, memo: dict[int, Any]) -> "Distillation":
        memo |= {id(part): part for part in (self.teacher, *self.teacher.model.modules())}
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def _forget(self, *of_the_hook: Any) -> None:
        self._maps = self._images = None
        if self._heads:
            self._heads.forget()

    def _see_maps(self, backbone: nn.Module, inputs: tuple, maps: dict[str, Any]) -> None:
        if self._learns():
            self._maps = maps
            self._images = inputs[0] if self._alike and inputs else None

    def _learns(self) -> bool:
        # without gradients a model in training mode is only being looked at, by PreciseBN say
        return self.model.training and torch.is_grad_enabled()

    def _add_losses(self, model: nn.Module, inputs: tuple, kwargs: dict, losses: Any) -> Any:
        if not self._learns():
            return None
        batch, maps, images = (*inputs, *kwargs.values())[0], self._maps, self._images
        _check_step(model, losses, maps)
        sizes = image_sizes(batch)
        student = Features(maps, feature_strides(model.backbone), sizes)
        # no part of the model, it did not come along if the model was moved after attaching
        self.teacher.move(next(iter(maps.values())).device)
        teacher = self.teacher(batch, images)
        if self._heads:
            labels = image_labels(batch)
            student.logits, teacher.logits = self._heads.compare(teacher.maps, sizes, labels)
        storage = _event_storage()
        if storage and self.max_iter:
            self.distiller.progress = min(storage.iter / self.max_iter, 1.0)
        targets = box_targets(batch, next(iter(maps.values())).device)
        distilled = self.distiller(student, teacher, targets)
        if self.warmup_iters > 0:
            share = self._warmth(storage)
            distilled = {name: share * loss for name, loss in distilled.items()}
        if storage:
            self._log(storage)
        return join_losses(losses, distilled)

    def _warmth(self, storage: EventStorage | None) -> float:
        if storage is None:
            raise UserError(
                "A warm-up (DISTILL.WARMUP_ITERS) counts steps by Detectron2's event storage: run "
                "the loop within `with EventStorage() as storage`, or set warmup_iters to 0."
            )
        return min((storage.iter + 1) / self.warmup_iters, 1.0)

    def _log(self, storage: EventStorage) -> None:
        if not self.distiller.metrics:
            return
        names, values = zip(*self.distiller.metrics.items(), strict=True)
        last, self._metrics = self._metrics, (names, Late(torch.stack(values)))
        if self._metrics[1].here:
            last = self._metrics
        # off the CPU they are logged a step late: to read them at once would halt the device
        if last:
            names, values = last
            storage.put_scalars(
                **dict(zip(names, values.read().tolist(), strict=True)), smoothing_hint=False
            )


def _check_step(model: nn.Module, losses: Any, maps: Any) -> None:
    for what, found in (("training forward returns", losses), ("backbone gave", maps)):
        if not isinstance(found, Mapping):
            raise UserError(
                f"The {what} {'nothing' if found is None else f'a {type(found).__name__}'}, in "
                f"{type(model).__name__}: to be distilled, a model must call its backbone, for "
                "feature maps by name, and return a dict of losses."
            )


def _event_storage() -> EventStorage | None:
    try:
        return get_event_storage()
    except AssertionError:  # a loop of somebody's own, without Detectron2's event storage
        return None


def attach_distiller(
    model: nn.Module,
    teacher: Teacher,
    distiller: Distiller,
    max_iter: int | None = None,
    warmup_iters: int = 0,
) -> Distillation:
    """Make a model distil: its training forward returns the distiller's losses beside its own.

    Evaluation is untouched. The distiller becomes ``model.distiller``, so that optimizer,
    DistributedDataParallel and checkpoints take it along; attach it before building those. The
    teacher becomes no part of the model.

    Args:
        model: any Detectron2 model with a ``backbone``, whose training forward takes a list of
            dicts (a classifier: one dict of tensors) and returns a dict of losses.
        teacher: from :func:`~dpk_det.pairing.teacher.build_teacher`.
        distiller: on the levels that :func:`~dpk_det.pairing.levels.pair_levels` found.
        max_iter: steps of the training, for schedules that follow its progress; without it, or
            without Detectron2's event storage, set ``distiller.progress`` yourself.
        warmup_iters: W; step i of them, from 0, has its distilling losses times (i + 1) / W. Needs
            Detectron2's event storage.

    Raises:
        UserError: when the model distils already or has no backbone, it has an ``input_format``
            other than the one its teacher was told, one of the two is a detector and the other a
            classifier, or their heads cannot be compared but the distiller needs it.
    """
    if hasattr(model, "distillation"):
        raise UserError(f"This {type(model).__name__} distils already: remove() that one first.")
    check_backbone(model)
    check_format(teacher, getattr(model, "input_format", None))
    if takes_tensors(model) != takes_tensors(teacher.model):
        raise UserError(
            f"A {type(model).__name__} cannot learn from a {type(teacher.model).__name__}, for a "
            "classifier's batches are not a detector's: choose a teacher of the student's kind."
        )
    return Distillation(model, teacher, distiller, max_iter, warmup_iters)


def check_format(teacher: Teacher, image_format: str | None) -> None:
    """The teacher must know in which channel order it is shown the student's images.

    Args:
        image_format: of these images, "BGR" or "RGB"; None: not known.

    Raises:
        UserError: when it was told the other one, and would see red as blue.
    """
    if image_format not in (None, teacher.student_format):
        raise UserError(
            f"The student's images are {image_format} but its teacher was told "
            f"{teacher.student_format}: load it by load_teacher(..., "
            f"student_format={image_format!r})."
        )


def check_backbone(model: nn.Module) -> None:
    """Check that a model has a backbone whose features can be seen.

    Raises:
        UserError: when it has none.
    """
    if not hasattr(getattr(model, "backbone", None), "output_shape"):
        raise UserError(
            f"{type(model).__name__} has no 'backbone' to see features of, with an output_shape() "
            "that names them: attach to one that has."
        )
