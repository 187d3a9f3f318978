"""The contract of every distiller: what it takes and what it returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from dpk_det.distill.padding import crop, valid_cells, valid_mask


@dataclass
class Logits:
    """The logits of one head for n places: regions, whole images, or a dense head's cells.

    Attributes:
        values: (n, K) logits.
        exclusive: whether the K are classes of which one is true (softmax). Otherwise each is a
            separate yes or no (sigmoid), for an anchor or for an anchor and a class.
        labels: (n,) the true class of each place; only for the student, and only if exclusive.
    """

    values: Tensor
    exclusive: bool
    labels: Tensor | None = None


@dataclass
class Targets:
    """Ground truth, one entry per image.

    Attributes:
        boxes: (n, 4) left, top, right, bottom, in pixels of the image that the student sees.
        classes: (n,) class numbers.
    """

    boxes: list[Tensor]
    classes: list[Tensor]


@dataclass
class Features:
    """The outputs of one network for a batch.

    Attributes:
        maps: name to feature map, (B, C, H, W).
        strides: name to pixels per cell.
        image_sizes: (height, width) of each image in pixels before padding; None: none is padded.
        logits: head name to logits, for methods that need them. Those of student and teacher are
            for the same places.
    """

    maps: dict[str, Tensor]
    strides: dict[str, int]
    image_sizes: list[tuple[int, int]] | None = None
    logits: dict[str, Logits] = field(default_factory=dict)


@dataclass(frozen=True)
class Level:
    """A student map and the teacher map that it learns from.

    Attributes:
        student: name of the student's map.
        teacher: name of the teacher's map.
        stride: pixels per cell, the same for both.
        student_channels: Cs.
        teacher_channels: Ct.
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
        level: the level.
        student: (B, Cs, H, W).
        teacher: (B, Ct, H, W), detached.
        extents: (rows, columns) of the cells of each image that are not padding.
    """

    level: Level
    student: Tensor
    teacher: Tensor
    extents: list[tuple[int, int]]

    def __post_init__(self) -> None:
        self.student, self.teacher = self.clear(self.student), self.clear(self.teacher)

    def clear(self, x: Tensor) -> Tensor:
        """Set the padding of a (B, ., H, W) map to zero, where layers may have added a bias."""
        return x if self.cells is None else x.where(self.cells.unsqueeze(1), 0)

    @cached_property
    def cells(self) -> Tensor | None:
        """(B, H, W) bool, false where a cell lies in padding; None if no cell does."""
        return valid_mask(self.extents, tuple(self.student.shape[-2:]), self.student.device)


class Distiller(nn.Module):
    """Base of all methods: takes features of student and teacher, and returns named losses.

    Attributes:
        levels: the levels to distil.
        metrics: scalars of the last step for curves, name to 0-d tensor. The caller logs them.
        progress: share of the training that is done, in [0, 1], for schedules. The caller sets it.
        heads: names of the heads whose logits the caller must fill in, if the models have them:
            "roi" (regions), "rpn" (proposals), "dense" (detectors without regions), "image"
            (classifiers).
        takes_levels: whether the method learns from the levels that it is built with.
    """

    heads: frozenset[str] = frozenset()
    takes_levels = True

    def __init__(self, levels: list[Level]) -> None:
        super().__init__()
        self.levels = levels
        self.metrics: dict[str, Tensor] = {}
        self.progress = 0.0

    @classmethod
    def settle(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in the arguments that other arguments imply."""
        return dict(arguments)

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses of one step, weights included.

        Args:
            student: features with gradients.
            teacher: features without gradients.
            targets: ground truth, if there is any.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it learns.")

    def pairs(self, student: Features, teacher: Features) -> Iterator[PairedMaps]:
        """Yield each level's maps.

        Networks that pad images to different multiples have maps that differ by a cell or two at
        the right and bottom. Both maps are cut to their common part.
        """
        for level in self.levels:
            s, t = student.maps[level.student], teacher.maps[level.teacher].detach()
            size = min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3])
            extents = valid_cells(student.image_sizes, level.stride, len(s), size)
            yield PairedMaps(level, crop(s, size), crop(t, size), extents)
