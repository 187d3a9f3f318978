"""Makes a built Detectron2 model distil by forward hooks, without a copy of its forward code."""

import copy
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from dpk_det.architectures import takes_tensors
from dpk_det.distill import Distiller
from dpk_det.distill.late import Late
from dpk_det.distill.registry import join_losses
from dpk_det.errors import UserError
from dpk_det.pairing.batches import box_targets, image_labels
from dpk_det.pairing.grad_share import GradShare
from dpk_det.pairing.heads import ComparedHeads
from dpk_det.pairing.modules import Layout, Seen, find_layouts, module_path, module_paths
from dpk_det.pairing.preparing import prepare_alike
from dpk_det.pairing.schedule import Schedule, event_storage
from dpk_det.pairing.teacher import Teacher


class Distillation:
    """Connects a model to its teacher; :meth:`remove` disconnects them.

    A deep copy of the model distils independently. It has its own hooks and distiller and shares
    the teacher, which never changes. A pickled model includes its teacher.

    Attributes:
        model: the student.
        teacher: the teacher.
        distiller: computes the distillation losses.
        schedule: when distillation counts, and how much.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher,
        distiller: Distiller,
        schedule: Schedule,
        layouts: Mapping[str, Layout],
    ) -> None:
        self.model, self.teacher, self.distiller = model, teacher, distiller
        self.schedule = schedule
        self._layouts = layouts
        self._seen = Seen()
        # the student's preprocessed images, kept if the teacher would preprocess in the same way
        self._images: Tensor | None = None
        self._alike = not teacher.flip_channels and prepare_alike(model, teacher.model)
        self._metrics: tuple[list[str], Late] | None = None
        self._step = 0  # for loops without an event storage
        distiller.grad_share = GradShare(
            getattr(distiller, "methods", ["distiller"]),
            schedule.grad_share,
            schedule.grad_share_every,
        )
        distiller.to(next(model.parameters()).device)
        self._heads = None
        if distiller.heads:
            self._heads = ComparedHeads(model, teacher.model, distiller.heads)
        self._hooks = [
            model.register_forward_pre_hook(self._begin),
            model.backbone.register_forward_hook(self._see_maps),
            model.register_forward_hook(self._add_losses, with_kwargs=True),
            *(
                model.get_submodule(module_path(name)).register_forward_hook(
                    partial(self._see_module, name)
                )
                for name in layouts
            ),
            # runs after errors too, because the seen outputs keep the step's graph in memory
            model.register_forward_hook(self._forget, always_call=True),
        ]
        model.distiller = distiller
        model.distillation = self  # not an nn.Module, so it adds nothing to the model's state

    def remove(self) -> None:
        """Remove hooks and distiller, so that the plain model is left."""
        for hook in self._hooks:
            hook.remove()
        if self._heads:
            self._heads.remove()
        del self.model.distiller, self.model.distillation

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_seen": Seen(), "_images": None}  # a graph cannot be copied

    def __deepcopy__(self, memo: dict[int, Any]) -> "Distillation":
        memo |= {id(part): part for part in (self.teacher, *self.teacher.model.modules())}
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def _begin(self, *of_the_hook: Any) -> None:
        self._forget()
        progress = self.schedule.progress(event_storage())
        if progress is not None:
            self.distiller.progress = progress

    def _forget(self, *of_the_hook: Any) -> None:
        self._seen, self._images = Seen(), None
        if self._heads:
            self._heads.forget()

    def _see_maps(self, backbone: nn.Module, inputs: tuple, maps: dict[str, Any]) -> None:
        if self._learns():
            self._seen.keep_maps(backbone, inputs, maps)
            self._images = inputs[0] if self._alike and inputs else None

    def _see_module(self, name: str, *of_the_hook: Any) -> Tensor | None:
        if self._learns():
            return self._seen.keep(name, self._layouts[name], *of_the_hook)
        return None

    def _learns(self) -> bool:
        # without gradients a model in training mode does not learn, for example in PreciseBN
        return self.model.training and torch.is_grad_enabled()

    def _add_losses(self, model: nn.Module, inputs: tuple, kwargs: dict, losses: Any) -> Any:
        if not self._learns():
            return None
        batch, seen, images = (*inputs, *kwargs.values())[0], self._seen, self._images
        _check_step(model, losses, seen.maps)
        storage = event_storage()
        if self.schedule.is_over(self.distiller.progress):
            return _touch(losses, self.distiller)
        student = seen.features(model, self._layouts, batch)
        device = next(iter(seen.maps.values())).device
        # The teacher is no part of the model and does not follow when somebody moves the model.
        self.teacher.move(device)
        teacher = self.teacher(batch, images)
        if self._heads:
            labels = image_labels(batch)
            student.logits, teacher.logits = self._heads.compare(
                teacher.maps, student.image_sizes, labels
            )
        distilled = self.distiller(student, teacher, box_targets(batch, device))
        # raw outputs, not the maps read from them: the student's own losses depend on the former
        maps = [*seen.maps.values(), *seen.outputs.values()]
        distilled = self._steer(losses, distilled, maps, storage)
        warmth = self.schedule.warmth(storage)
        if warmth < 1:
            distilled = {name: warmth * loss for name, loss in distilled.items()}
        if storage:
            self._log(storage)
        return join_losses(losses, distilled)

    def _steer(
        self,
        losses: Mapping[str, Tensor],
        distilled: Mapping[str, Tensor],
        maps: Sequence[Tensor],
        storage: EventStorage | None,
    ) -> dict[str, Tensor]:
        share = self.distiller.grad_share
        owners = getattr(self.distiller, "owners", {})
        by_method: dict[str, dict[str, Tensor]] = {method: {} for method in share.methods}
        for name, loss in distilled.items():
            by_method[owners.get(name, share.methods[0])][name] = loss
        step = storage.iter if storage else self._step
        self._step += 1
        by_method = share(step, losses, by_method, maps)
        self.distiller.metrics = {**self.distiller.metrics, **share.metrics()}
        return {name: loss for part in by_method.values() for name, loss in part.items()}

    def _log(self, storage: EventStorage) -> None:
        if not self.distiller.metrics:
            return
        names, values = zip(*self.distiller.metrics.items(), strict=True)
        last, self._metrics = self._metrics, (names, Late(torch.stack(values)))
        if self._metrics[1].here:
            last = self._metrics
        # On a GPU they are logged one step late, because reading them at once would stall it.
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


def _touch(losses: dict[str, Tensor], distiller: nn.Module) -> dict[str, Tensor]:
    """Return the losses; with several processes, give the distiller's weights a gradient of 0.

    DistributedDataParallel waits for a gradient of every weight.
    """
    parameters = [p for p in distiller.parameters() if p.requires_grad]
    if comm.get_world_size() == 1 or not parameters:
        return losses
    name, loss = next(iter(losses.items()))
    return {**losses, name: loss + 0 * sum(p.sum() for p in parameters)}


def attach_distiller(
    model: nn.Module,
    teacher: Teacher,
    distiller: Distiller,
    layouts: Mapping[str, Layout] | None = None,
    **schedule: Any,
) -> Distillation:
    """Make a model distil: its training forward returns the distiller's losses beside its own.

    Evaluation does not change. The distiller becomes ``model.distiller``, so that optimizer,
    DistributedDataParallel and checkpoints include it. Attach it before you build these. The
    teacher does not become part of the model.

    Args:
        model: any Detectron2 model with a ``backbone``, whose training forward takes a list of
            dicts (a classifier: one dict of tensors) and returns a dict of losses.
        teacher: from :func:`~dpk_det.pairing.teacher.build_teacher`.
        distiller: built on the levels of :func:`~dpk_det.pairing.levels.pair_levels`.
        layouts: layouts of the student's modules among these levels; None: find them.
        schedule: keyword arguments of :class:`~.schedule.Schedule`: ``max_iter``, ``warmup_iters``,
            ``stop_at``, ``grad_share``, ``grad_share_every``.

    Raises:
        UserError: when the model distils already or has no backbone, its ``input_format``
            contradicts the teacher's ``student_format``, one of the two is a detector and the other
            a classifier, or the distiller needs heads that cannot be compared.
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
    parts = [x for x in distiller.modules() if isinstance(x, Distiller)]
    pairs = [level for part in parts for level in part.levels]
    if layouts is None:
        layouts = find_layouts(model, _modules(model, {level.student for level in pairs}))
    teacher.look_at(_modules(teacher.model, {x.teacher for x in pairs} - {*teacher.layouts}))
    return Distillation(model, teacher, distiller, Schedule(**schedule), layouts)


def _modules(model: nn.Module, names: Collection[str]) -> list[str]:
    """Return the paths of the modules among the names of maps."""
    return module_paths(model, [module_path(name) for name in names])


def check_format(teacher: Teacher, image_format: str | None) -> None:
    """Check that the teacher knows the channel order of the student's images.

    Args:
        teacher: has the ``student_format`` to check.
        image_format: channel order of these images, "BGR" or "RGB"; None: not known.

    Raises:
        UserError: when the teacher expects the other order, and would see red as blue.
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
