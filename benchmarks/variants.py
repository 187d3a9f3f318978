"""The variants of a training step: plain, with a teacher that only runs, and one per method."""

import importlib.util
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.layers import CNNBlockBase, FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from measure import peak_bytes, tensor_bytes
from omegaconf import DictConfig
from torch import Tensor, nn

from dpk_det.architectures import classifies, plain_architecture
from dpk_det.config.loading import load_config
from dpk_det.config.methods import method_arguments
from dpk_det.data import made_up_batch
from dpk_det.distill.registry import DISTILLERS
from dpk_det.engine import DistillTrainer
from dpk_det.engine.launch import use_device
from dpk_det.errors import UserError, find
from dpk_det.pairing.distil import distil
from dpk_det.pairing.schedule import schedule_arguments
from dpk_det.pairing.teacher import Teacher, build_teacher, load_teacher_config

Size = tuple[int, int]

PRECISIONS = ("fp32", "bf16", "fp16")
SEED = 1


class Floor(nn.Module):
    """A plain model that runs its teacher on every batch, but learns nothing from it."""

    def __init__(self, model: nn.Module, teacher: Teacher) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return the plain losses."""
        losses = self.model(batch)
        self.teacher(batch)
        return losses


class Autocast(nn.Module):
    """Runs a model in autocast: Detectron2 0.6's own mixed precision is float16 on a GPU only."""

    def __init__(self, model: nn.Module, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.device, self.dtype = device, dtype

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return the model's losses."""
        with torch.autocast(self.device, self.dtype):
            return self.model(batch)


class Stepper:
    """Takes one training step of one variant per call, with Detectron2's own trainer.

    Args:
        cfg: config of the optimizer.
        model: returns losses when it runs in training mode.
        batch: the batch of every step.
        precision: a name in PRECISIONS.
        teacher: the teacher, if the model uses one that is not its submodule.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        batch: Any,
        precision: str = "fp32",
        teacher: Teacher | None = None,
    ) -> None:
        self.model = model
        self.optimizer = DistillTrainer.build_optimizer(cfg, model)
        self.storage = EventStorage()
        self._tensors = [model, teacher.model] if teacher else [model]
        batches = itertools.repeat(batch)
        if precision == "fp16":
            # from 1: with the usual start of 65536 the first steps skip the optimizer
            scaler = torch.amp.GradScaler("cuda", init_scale=1.0)
            self.trainer = AMPTrainer(model, batches, self.optimizer, grad_scaler=scaler)
            return
        if precision == "bf16":
            model = Autocast(model, cfg.MODEL.DEVICE.partition(":")[0], torch.bfloat16)
        self.trainer = SimpleTrainer(model, batches, self.optimizer)

    def __call__(self) -> None:
        """Take a step."""
        with self.storage:
            self.trainer.run_step()
            self.storage.step()

    @property
    def trained(self) -> int:
        """Number of trained values. Several processes exchange a gradient for each."""
        return sum(x.numel() for x in self.model.parameters() if x.requires_grad)

    def held_bytes(self) -> int:
        """Return the bytes of weights, buffers and momentum, with the teacher's, no gradients."""
        states = (x for state in self.optimizer.state.values() for x in state.values())
        weights = (x for m in self._tensors for x in (*m.parameters(), *m.buffers()))
        return tensor_bytes(x for x in (*weights, *states) if isinstance(x, Tensor))

    def peak_bytes(self, device: str) -> int:
        """Return the most bytes that this variant holds at any time of its steps."""
        self.optimizer.zero_grad(set_to_none=True)

        def two_steps() -> None:  # the second starts with the first one's gradients, as usual
            self()
            self()

        return self.held_bytes() + peak_bytes(two_steps, device)


def read_config(path: str, opts: Sequence[str]) -> CfgNode:
    """Read a distilling config and prepare its plain twin for steps from made-up weights.

    Raises:
        UserError: as :func:`load_config` does.
    """
    cfg = load_config(path, opts)
    use_device(cfg)
    cfg.MODEL.WEIGHTS = ""
    # weights barely move, so that every step of every variant does the same work
    cfg.SOLVER.BASE_LR = 1e-6
    return plain_architecture(cfg)


def make_teacher(cfg: CfgNode) -> Teacher:
    """Build the teacher of a config, with random weights if it names none.

    Raises:
        UserError: if the teacher's config does not exist.
    """
    cfg, node = cfg.clone(), cfg.DISTILL.TEACHER
    if node.WEIGHTS:
        return build_teacher(cfg)
    theirs = load_teacher_config(node.CONFIG_FILE, node.OPTS)
    torch.manual_seed(SEED + 1)
    if isinstance(theirs, DictConfig):
        model = instantiate(theirs.model)
    else:
        theirs = plain_architecture(theirs)
        theirs.MODEL.DEVICE = "cpu"
        model = build_model(theirs)
    calm(model)
    with tempfile.TemporaryDirectory() as folder:
        cfg.DISTILL.TEACHER.WEIGHTS = str(Path(folder) / "made_up.pth")
        torch.save({"model": model.state_dict()}, cfg.DISTILL.TEACHER.WEIGHTS)
        return build_teacher(cfg)


@torch.no_grad()
def calm(model: nn.Module) -> None:
    """Damp each residual block with frozen norms, in place.

    With random weights and no normalisation each block doubles the variance, so that float16
    overflows after the 33 blocks of a ResNet-101.
    """
    for block in model.modules():
        if isinstance(block, CNNBlockBase):
            norms = [m for m in block.modules() if isinstance(m, FrozenBatchNorm2d)]
            for norm in norms[-1:]:
                norm.weight.fill_(0.1)


def make_student(cfg: CfgNode) -> nn.Module:
    """Build the plain student, with the same weights at each call."""
    torch.manual_seed(SEED)
    model = build_model(cfg)
    calm(model)
    return model


def make_batch(cfg: CfgNode, num_images: int, size: Size | None, padded: bool) -> Any:
    """Make up images. If padded, every second one is a quarter narrower, which needs masks."""
    torch.manual_seed(SEED)
    if not padded:
        return made_up_batch(cfg, num_images, size)
    if classifies(cfg) or size is None:
        raise UserError("--padded is for detectors and a known size of images: give --size.")
    sizes = [size, (size[0], size[1] * 3 // 4)]
    return [made_up_batch(cfg, 1, sizes[i % 2])[0] for i in range(num_images)]


def make_steppers(
    cfg: CfgNode,
    methods: Sequence[str] | None,
    batch: Any,
    precision: str,
    also: Mapping[str, nn.Module],
) -> tuple[dict[str, Stepper], dict[str, str]]:
    """Build every variant; also return the methods that do not fit this student, with the reason.

    Args:
        cfg: config of the student.
        methods: names of methods; None: all registered methods that fit.
        batch: the batch of every step.
        precision: a name in PRECISIONS.
        also: further models by name, from another implementation.

    Raises:
        UserError: if one of the named methods does not fit.
    """
    teacher = make_teacher(cfg)
    steppers = {
        "plain": Stepper(cfg, make_student(cfg), batch, precision),
        "floor": Stepper(cfg, Floor(make_student(cfg), teacher), batch, precision, teacher),
    }
    skipped = {}
    for name in sorted(DISTILLERS, key=lambda x: (x != "dpk", x)) if methods is None else methods:
        find(DISTILLERS, name, "method")
        cfg.DISTILL.METHODS = [name]
        try:
            model = distil(
                make_student(cfg),
                teacher,
                method_arguments(cfg),
                cfg.DISTILL.LEVELS,
                max_iter=90000,
                **schedule_arguments(cfg),
            )
            stepper = Stepper(cfg, model, batch, precision, teacher)
            stepper()
        except UserError as e:
            if methods is not None:
                raise
            skipped[name] = str(e)
        else:
            steppers[name] = stepper
    for name, model in also.items():
        steppers[name] = Stepper(cfg, model.train(), batch, precision)
    return steppers, skipped


def load_also(path: Path, cfg: CfgNode) -> dict[str, nn.Module]:
    """Call ``variants(cfg)`` of a file, which returns models by name.

    Raises:
        UserError: if the file does not exist or has no such function.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path} to take further variants from: correct --also.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "variants"):
        raise UserError(f"{path} has no function variants(cfg), which returns models by name.")
    return module.variants(cfg)
