"""The contract that every distiller keeps: what it is given, and what it returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from dpk_det.distill.padding import valid_cells, valid_mask


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
        """The arguments with those filled in that others imply."""
        return dict(arguments)

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
