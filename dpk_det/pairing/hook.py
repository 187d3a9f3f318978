"""A hook that adds distillation to a trainer without support for it."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from dpk_det.config.methods import method_arguments
from dpk_det.errors import UserError
from dpk_det.pairing.attach import check_format
from dpk_det.pairing.ddp import rewrap, unwrap
from dpk_det.pairing.distil import distil
from dpk_det.pairing.inherit import inherit_weights
from dpk_det.pairing.scaling import scale_to_processes
from dpk_det.pairing.schedule import schedule_arguments
from dpk_det.pairing.teacher import Teacher, build_teacher


class DistillHook(HookBase):
    """Makes Detectron2's ``DefaultTrainer``, or a subclass, distil its plain model.

    Register it after the trainer is built and before ``resume_or_load()``::

        trainer = DefaultTrainer(cfg)
        trainer.register_hooks([DistillHook(load_teacher("teacher.yaml"), {"dpk": {}})])
        trainer.resume_or_load(resume=args.resume)
        trainer.train()

    Registering the hook attaches the distiller, so that checkpoints find a place for its weights
    and their optimizer state. The trainer's own ``build_optimizer`` and ``build_lr_scheduler``
    set how these weights learn. Pairs of levels, the distiller's size and inherited weights are
    logged (:func:`~dpk_det.news.tell`). After training, finished or not, model and optimizer are
    plain again. Checkpoints written before that also contain ``distiller.*``.

    Args:
        teacher: from :func:`~dpk_det.pairing.teacher.load_teacher`.
        methods: as :func:`~dpk_det.pairing.distil.distil` takes them.
        levels: as :func:`~dpk_det.pairing.distil.distil` takes them.
        inherit: start neck and heads from the teacher's weights, as ``DISTILL.INHERIT`` does. This
            happens after other weights are loaded, and not when a training is resumed.
        schedule: as :func:`~dpk_det.pairing.distil.distil` takes it, without ``max_iter``, which
            the trainer gives.
    """

    def __init__(
        self,
        teacher: Teacher,
        methods: Mapping[str, Mapping[str, Any]],
        levels: Sequence[str] = (),
        inherit: bool = False,
        **schedule: Any,
    ) -> None:
        self.teacher, self.methods, self.levels = teacher, methods, levels
        self.inherit, self.schedule = inherit, schedule

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "DistillHook":
        """Build the hook of ``cfg.DISTILL``, for a config with a plain ``META_ARCHITECTURE``.

        Raises:
            UserError: when the config has no such node, or the teacher cannot be built.
        """
        if "DISTILL" not in cfg:
            raise UserError(
                "This config has no DISTILL node: call dpk_det.add_dpk_config(cfg) before files "
                "are merged into it."
            )
        cfg = scale_to_processes(cfg)  # the trainer scales all but the warm-up
        node = cfg.DISTILL
        return cls(
            build_teacher(cfg),
            method_arguments(cfg),
            node.LEVELS,
            node.INHERIT,
            **schedule_arguments(cfg),
        )

    @property
    def trainer(self) -> Any:
        """The trainer. Registering the hook sets it and attaches the distiller to its model.

        Raises:
            UserError: when it is no DefaultTrainer or has resumed already, when the teacher expects
                a channel order other than ``INPUT.FORMAT``, and as :func:`~.distil.distil` does.
        """
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        if not hasattr(trainer, "build_lr_scheduler"):
            raise UserError(
                "DistillHook is for Detectron2's DefaultTrainer: with another trainer, or none, "
                "call dpk_det.distil(model, ...) before the optimizer is built."
            )
        if trainer.start_iter or trainer.iter:
            raise UserError(
                f"DistillHook was registered at iteration {trainer.start_iter or trainer.iter}: "
                "register it before resume_or_load(), which else finds no place for its weights."
            )
        check_format(self.teacher, trainer.cfg.INPUT.FORMAT)
        self._trainer = trainer
        model = distil(
            unwrap(trainer.model),
            self.teacher,
            self.methods,
            self.levels,
            max_iter=trainer.max_iter,
            **self.schedule,
        )
        self._optimise(model.distiller)
        trainer.model = rewrap(trainer.model)

    def before_train(self) -> None:
        """Inherit the teacher's weights if ``inherit`` is set."""
        model = unwrap(self.trainer.model)
        if not hasattr(model, "distillation"):
            raise UserError(
                "This DistillHook has let its model go after a first train(): build a new trainer "
                "and register a new hook."
            )
        self._check_resumed()
        if self.inherit and self.trainer.start_iter == 0:
            inherit_weights(model, self.teacher.model)

    def after_train(self) -> None:
        """Restore the plain model, in its wrapper, and its optimizer."""
        trainer, model = self.trainer, unwrap(self.trainer.model)
        if not hasattr(model, "distillation"):
            return
        self._forget(model.distiller)
        model.distillation.remove()
        # Wrapping needs all processes. After an exception the others may be elsewhere.
        finished = trainer.iter >= trainer.max_iter
        trainer.model = rewrap(trainer.model) if finished else model

    def _check_resumed(self) -> None:
        trainer, groups = self.trainer, self.trainer.optimizer.param_groups
        # the scheduler is loaded from the checkpoint and has one rate per group
        if len(getattr(trainer.scheduler, "base_lrs", groups)) != len(groups):
            raise UserError(
                f"The training resumed at iteration {trainer.start_iter} did not distil by the "
                "same methods: name its checkpoint in MODEL.WEIGHTS and train without resuming, "
                "in another OUTPUT_DIR."
            )

    def _optimise(self, distiller: nn.Module) -> None:
        trainer, optimizer = self.trainer, self.trainer.optimizer
        self._num_groups = len(optimizer.param_groups)
        if not any(p.requires_grad for p in distiller.parameters()):
            return  # some methods have nothing to learn
        # as in the student, norm layers and biases may have their own decay and learning rate
        for group in trainer.build_optimizer(trainer.cfg, distiller).param_groups:
            optimizer.add_param_group(group)
        # A scheduler has one list entry per group and has set the first step's rates: rebuild it.
        for group in optimizer.param_groups:
            group["lr"] = group.pop("initial_lr", group["lr"])
        trainer.scheduler = trainer.build_lr_scheduler(trainer.cfg, optimizer)

    def _forget(self, distiller: nn.Module) -> None:
        optimizer = self.trainer.optimizer
        for parameter in distiller.parameters():
            optimizer.state.pop(parameter, None)
        del optimizer.param_groups[self._num_groups :]
        del getattr(self.trainer.scheduler, "base_lrs", [])[self._num_groups :]
