"""Logits of heads: hooks record the student's, and the teacher's run on the same places.

Shapes: B images, H x W cells, A anchors per cell, K classes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dpk_det.distill import Logits
from dpk_det.distill.padding import crop, valid_cells, valid_mask
from dpk_det.errors import UserError
from dpk_det.pairing.preparing import feature_strides


@dataclass
class DenseHead:
    """A head that runs on every cell: the proposal head or the head of a detector without regions.

    Attributes:
        name: "rpn" (proposals) or "dense".
        module: takes a list of maps and returns a list of logits (B, A K, H, W) first.
        maps: names of the maps, in order.
        anchors: (A, 4) anchors around a cell in pixels, by the map's stride.
        num_classes: K; None where the model does not give it.
    """

    name: str
    module: nn.Module
    maps: list[str]
    anchors: dict[int, Tensor]
    num_classes: int | None

    @staticmethod
    def of(model: nn.Module) -> "DenseHead | None":
        """Return the dense head of a model, or None."""
        strides = feature_strides(model.backbone)
        proposals = getattr(model, "proposal_generator", None)
        if hasattr(proposals, "rpn_head"):
            owner, name, module, maps = proposals, "rpn", proposals.rpn_head, proposals.in_features
            num_classes = 1
        elif hasattr(model, "head_in_features"):
            owner, name, module, maps = model, "dense", model.head, model.head_in_features
            num_classes = getattr(model, "num_classes", None)
        else:
            return None
        anchors = owner.anchor_generator.cell_anchors
        by_stride = {strides[x]: a for x, a in zip(maps, anchors, strict=True)}
        return DenseHead(name, module, list(maps), by_stride, num_classes)


@dataclass
class BoxHead:
    """The head that classifies regions. For a cascade this is its first stage.

    Attributes:
        heads: the model's ``roi_heads``.
        features: the box head that turns pooled regions into features.
        predictor: returns logits (n, K + 1) first.
        num_classes: K.
    """

    name = "roi"
    heads: nn.Module
    features: nn.Module
    predictor: nn.Module

    @property
    def num_classes(self) -> int:
        return self.heads.num_classes

    @staticmethod
    def of(model: nn.Module) -> "BoxHead | None":
        """Return the box head of a model, or None."""
        heads = getattr(model, "roi_heads", None)
        if not hasattr(heads, "box_pooler"):
            return None
        stages = [heads.box_head, heads.box_predictor]
        return BoxHead(heads, *(x[0] if isinstance(x, nn.ModuleList) else x for x in stages))

    def classify(self, maps: Mapping[str, Tensor], boxes: list[Any]) -> Tensor:
        """Return the logits (n, K + 1) of the boxes of all images."""
        pooled = self.heads.box_pooler([maps[x] for x in self.heads.box_in_features], boxes)
        return self.predictor(self.features(pooled))[0]


@dataclass
class ImageHead:
    """The head of a classifier.

    Attributes:
        model: the classifier, which can classify maps.
        head: its last layer, which returns logits (B, K).
    """

    name = "image"
    model: nn.Module
    head: nn.Module

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    @staticmethod
    def of(model: nn.Module) -> "ImageHead | None":
        """Return the image head of a model, or None."""
        return ImageHead(model, model.head) if hasattr(model, "classify") else None


class ComparedHeads:
    """Compares the heads that student and teacher share, on the same places.

    Args:
        student: forward hooks record the outputs of its heads.
        teacher: its heads run on the places that the student's heads saw.
        names: names of the heads to compare, see :attr:`dpk_det.distill.Distiller.heads`.

    Raises:
        UserError: when they share none of these heads, or the heads differ in classes or anchors,
            have no stride in common or use ``USE_SIGMOID_CE``.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, names: Collection[str]) -> None:
        self._student = student
        self._hooks: list[Any] = []
        self._seen: dict[str, Any] = {}
        self.dense, self.box, self.image = (
            _shared(find(student), find(teacher), names)
            for find in (DenseHead.of, BoxHead.of, ImageHead.of)
        )
        if not self.dense and not self.box and not self.image:
            raise UserError(
                f"A {type(student).__name__} student and a {type(teacher).__name__} teacher share "
                f"none of the heads whose logits are to be compared ({', '.join(sorted(names))}): "
                "choose a method that learns features."
            )
        for pair in filter(None, (self.dense, self.box, self.image)):
            _check_classes(*pair)
        if self.dense:
            _check_anchors(*self.dense)
        if self.box and any(getattr(x.predictor, "use_sigmoid_ce", False) for x in self.box):
            raise UserError(
                "A box head with USE_SIGMOID_CE has no classes that exclude one another, as "
                "logit distillation needs: choose a method that learns features."
            )
        # Hooks come last, so that a refused pair leaves none behind.
        if self.dense:
            self._watch(self.dense[0].module, "dense")
        if self.box:
            own = self.box[0]
            self._watch(own.predictor, "logits")
            self._watch(own.heads, "regions")
            hook = own.heads.box_pooler.register_forward_pre_hook(self._see_boxes)
            self._hooks.append(hook)
        if self.image:
            self._watch(self.image[0].head, "image")

    def compare(
        self,
        maps: Mapping[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        labels: Tensor | None = None,
    ) -> tuple[dict[str, Logits], dict[str, Logits]]:
        """Return the logits of both networks for the places that the student saw in this step.

        Args:
            maps: the teacher's maps, by name.
            image_sizes: (height, width) of each image before padding.
            labels: (B,) the class of each image; only for a classifier.

        Returns:
            Head name to logits of the student, and the same for the teacher.

        Raises:
            UserError: when dense heads differ in classes, or a head of the student has not run.
        """
        seen, self._seen = self._seen, {}  # the graph must not outlive the step
        self._check_seen(seen)
        student, teacher = {}, {}
        if self.dense:
            own, other = self.dense
            with torch.no_grad():
                answers = other.module([maps[x] for x in other.maps])[0]
            asked = dict(zip(own.anchors, seen["dense"][0], strict=True))
            told = dict(zip(other.anchors, answers, strict=True))
            rows = [
                _valid_rows(asked[stride], told[stride], stride, image_sizes)
                for stride in asked
                if stride in told
            ]
            student[own.name], teacher[own.name] = (
                Logits(torch.cat(x), exclusive=False) for x in zip(*rows, strict=True)
            )
        if self.box:
            regions, _ = seen["regions"]
            labels = torch.cat([x.gt_classes for x in regions])
            with torch.no_grad():
                answers = self.box[1].classify(maps, seen["boxes"])
            student["roi"] = Logits(seen["logits"][0], True, labels)
            teacher["roi"] = Logits(answers, True)
        if self.image:
            with torch.no_grad():
                answers = self.image[1].model.classify(maps)
            student["image"] = Logits(seen["image"], True, labels.to(answers.device))
            teacher["image"] = Logits(answers, True)
        return student, teacher

    def _check_seen(self, seen: Mapping[str, Any]) -> None:
        of_box = dict.fromkeys(("boxes", "logits", "regions"), self.box)
        for key, pair in {"dense": self.dense, "image": self.image, **of_box}.items():
            if pair and key not in seen:
                raise UserError(
                    f"The student's {pair[0].name} head has not run with gradients in this step, "
                    "so its logits cannot be compared: choose a method that learns features."
                )
        if self.box and not all(x.has("gt_classes") for x in seen["regions"][0]):
            raise UserError(
                "The student's roi_heads are in evaluation mode and sample no regions whose logits "
                "could be compared: call roi_heads.train(), and eval() only on parts of it."
            )

    def forget(self) -> None:
        """Drop the recorded outputs."""
        self._seen = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_seen": {}}  # a graph cannot be copied

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _watch(self, module: nn.Module, name: str) -> None:
        # not a closure: copies of the model would share it, and it cannot be pickled
        self._hooks.append(module.register_forward_hook(partial(self._see, name)))

    def _see(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._learns():
            self._seen[name] = output

    def _see_boxes(self, pooler: nn.Module, inputs: Any) -> None:
        if self._learns():
            self._seen.setdefault("boxes", inputs[1])  # a cascade pools in each stage

    def _learns(self) -> bool:
        # of the whole student, because a frozen head may be in evaluation mode
        return self._student.training and torch.is_grad_enabled()


def _shared(own: Any, other: Any, names: Collection[str]) -> tuple[Any, Any] | None:
    same = own and other and own.name == other.name
    return (own, other) if same and own.name in names else None


def _check_classes(own: Any, other: Any) -> None:
    if None not in (own.num_classes, other.num_classes) and own.num_classes != other.num_classes:
        raise UserError(
            f"The student knows {own.num_classes} classes and its teacher {other.num_classes}, so "
            "their logits cannot be compared: choose a teacher of the same classes."
        )


def _check_anchors(own: DenseHead, other: DenseHead) -> None:
    common = own.anchors.keys() & other.anchors.keys()
    if not common:
        raise UserError(
            "The heads of student and teacher share no stride: choose a method that learns from "
            "features."
        )
    for stride in sorted(common):
        a, b = own.anchors[stride].cpu(), other.anchors[stride].cpu()
        if a.shape != b.shape or not torch.allclose(a, b):
            raise UserError(
                f"At stride {stride} the student's head has other anchors than its teacher's "
                f"({len(a)} and {len(b)} a cell), so their logits cannot be compared: give both "
                "the same MODEL.ANCHOR_GENERATOR, or choose a method that learns features (as for "
                "RetinaNet with FCOS, whose cells each stand for one point)."
            )


def _valid_rows(
    own: Tensor, other: Tensor, stride: int, image_sizes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return the cells outside padding, (n, A K) each, of two (B, A K, H, W) maps."""
    if own.shape[1] != other.shape[1]:
        raise UserError(
            f"The student's head says {own.shape[1]} things of a cell and its teacher's "
            f"{other.shape[1]}: choose a teacher of the same classes."
        )
    size = min(own.shape[2], other.shape[2]), min(own.shape[3], other.shape[3])
    own, other = (crop(x, size).permute(0, 2, 3, 1) for x in (own, other))
    cells = valid_mask(valid_cells(list(image_sizes), stride, len(own), size), size, own.device)
    if cells is None:
        return own.flatten(0, 2), other.flatten(0, 2)
    return own[cells], other[cells]
