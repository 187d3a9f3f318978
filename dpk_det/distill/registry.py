"""The contract that every distiller keeps, and the registry that finds them by name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from dpk_det.errors import UserError, find

from .arguments import check_arguments
from .tokens import valid_cells, valid_mask


@dataclass
class Logits:
    """What one head says of n places: regions, whole images, or a dense head's cells.

    Attributes:
        values: (n, K). exclusive: the K are classes of which one is true (softmax); else each is a
            yes or no of its own (sigmoid), of an anchor or of an anchor and a class.
        labels: (n,) the true class of each place, where classes exclude one another; the student's
            only.
    """

    values: Tensor
    exclusive: bool
    labels: Tensor | None = None


@dataclass
class Targets:
    """Ground truth, an entry an image.

    Attributes:
        boxes: (n, 4) pixels of the image as the student sees it: left, top, right, bottom.
        classes: (n,) class numbers.
    """

    boxes: list[Tensor]
    classes: list[Tensor]


@dataclass
class Features:
    """What one network says of a batch.

    Attributes:
        maps: name to feature map, (B, C, H, W).
        strides: name to pixels a cell.
        image_sizes: (height, width) of each image in pixels before padding; None: none is padded.
        logits: head to what it says, for methods that need it; student and teacher of the same
            places.
    """

    maps: dict[str, Tensor]
    strides: dict[str, int]
    image_sizes: list[tuple[int, int]] | None = None
    logits: dict[str, Logits] = field(default_factory=dict)


@dataclass(frozen=True)
class Level:
    """A student map and the teacher map that it learns from.

    Attributes:
        student, teacher: names of the maps. stride: pixels a cell, the same for both.
        student_channels, teacher_channels: Cs and Ct.
    """

    student: str
    teacher: str
    stride: int
    student_channels: int
    teacher_channels: int


@dataclass
class PairedMaps:
    """The maps of one level, cut to the same size and zero where images are padded.

    Attributes:
        level: which. student: (B, Cs, H, W). teacher: (B, Ct, H, W), detached.
        extents: (rows, columns) of cells of each image that are not padding.
    """

    level: Level
    student: Tensor
    teacher: Tensor
    extents: list[tuple[int, int]]

    def __post_init__(self) -> None:
        self.student, self.teacher = self.clear(self.student), self.clear(self.teacher)

    def clear(self, x: Tensor) -> Tensor:
        """A (B, ., H, W) map with zeros in the padding, where a layer's bias stands as well."""
        return x if self.cells is None else x.where(self.cells.unsqueeze(1), 0)

    @cached_property
    def cells(self) -> Tensor | None:
        """(B, H, W) bool, false where a cell lies in padding; None where none does."""
        return valid_mask(self.extents, tuple(self.student.shape[-2:]), self.student.device)


class Distiller(nn.Module):
    """Base of all methods: features of student and teacher in, named losses out.

    Attributes:
        levels: what is distilled.
        metrics: scalars of the last step that deserve a curve, name to 0-d tensor. The caller logs.
        progress: share of the training that is done, in [0, 1], for schedules. The caller sets it.
        heads: those whose logits the caller must fill in, as far as the models have them: "roi"
            (regions), "rpn" (proposals), "dense" (detectors without regions), "image"
            (classifiers).
    """

    heads: frozenset[str] = frozenset()

    def __init__(self, levels: list[Level]) -> None:
        super().__init__()
        self.levels = levels
        self.metrics: dict[str, Tensor] = {}
        self.progress = 0.0

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses of one step, weights included.

        Args:
            student: with gradients. teacher: without. targets: ground truth, where there is any.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it learns.")

    def pairs(self, student: Features, teacher: Features) -> Iterator[PairedMaps]:
        """Yield each level's maps.

        Networks that pad images to different multiples have maps that differ by a cell or two at
        the right and bottom: both are cut to what they share.
        """
        for level in self.levels:
            s, t = student.maps[level.student], teacher.maps[level.teacher].detach()
            size = min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3])
            s, t = (x[..., : size[0], : size[1]] for x in (s, t))
            yield PairedMaps(
                level, s, t, valid_cells(student.image_sizes, level.stride, len(s), size)
            )


class Combined(Distiller):
    """Several methods side by side; their losses and metrics carry their own names."""

    def __init__(self, methods: dict[str, Distiller]) -> None:
        super().__init__([])
        self.methods = nn.ModuleDict(methods)
        self.heads = frozenset().union(*(method.heads for method in methods.values()))

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """The union of the methods' losses."""
        losses: dict[str, Tensor] = {}
        self.metrics = {}
        for method in self.methods.values():
            method.progress = self.progress
            losses = join_losses(losses, method(student, teacher, targets))
            self.metrics.update(method.metrics)
        return losses


def join_losses(losses: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both, by name.

    Raises:
        UserError: when they share a name, under which one would be lost.
    """
    if shared := losses.keys() & others.keys():
        raise UserError(
            f"Two losses are named '{min(shared)}', of two methods or of a method and the model: "
            "rename one."
        )
    return {**losses, **others}


DISTILLERS: dict[str, Callable[..., Distiller]] = {}


def register_distiller(name: str) -> Callable[[type[Distiller]], type[Distiller]]:
    """Class decorator: make a distiller known under a name, as in ``DISTILL.METHODS: [name]``.

    Its constructor takes the levels and, as keyword arguments, what the config node
    ``DISTILL.NAME`` holds, in lower case. Its annotations say which values they take: see
    :mod:`.arguments`. :func:`build_distiller` checks them, the constructor need not.
    """

    def register(cls: type[Distiller]) -> type[Distiller]:
        DISTILLERS[name] = cls
        return cls

    return register


def build_distiller(methods: Mapping[str, Mapping[str, Any]], levels: list[Level]) -> Distiller:
    """Build the distillers of these names.

    Args:
        methods: name to the keyword arguments of that method.
        levels: what to distil.

    Raises:
        UserError: for an unknown name, naming the nearest known one, or none at all; and for
            arguments as :func:`~.arguments.check_arguments` says.
    """
    if not isinstance(methods, Mapping):
        raise UserError(
            f"The methods are {methods!r}: write each with its arguments, {{'dpk': {{}}}}."
        )
    if not methods:
        raise UserError(f"No method is named: choose from {', '.join(sorted(DISTILLERS))}.")
    built = {}
    for name, given in methods.items():
        constructor = find(DISTILLERS, name, "distiller")
        built[name] = constructor(levels, **check_arguments(name, constructor, given))
    return Combined(built)
