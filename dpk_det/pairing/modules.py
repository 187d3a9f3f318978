"""Feature maps of modules that a backbone does not list: a stage, a transformer's encoder.

A module is named by its path in the model, ``backbone.bottom_up.res4``. Its map has the same name
with slashes, because a distiller names layers after maps and torch allows no dot in these names.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from dpk_det import random_state
from dpk_det.architectures import takes_tensors
from dpk_det.distill import Features
from dpk_det.errors import UserError
from dpk_det.pairing.batches import Batch, image_sizes
from dpk_det.pairing.preparing import feature_strides, preprocess

PROBE = 256, 384
"""Height and width of the noise images that reveal a layout: their maps are not square."""


def map_name(path: str) -> str:
    """The name of a module's map."""
    return path.replace(".", "/")


def module_path(name: str) -> str:
    """The path of the module whose map has this name."""
    return name.replace("/", ".")


@dataclass(frozen=True)
class Layout:
    """How a module returns its map.

    Attributes:
        axes: "bchw"; "bhwc", as in Detectron2's ViT; or tokens, row by row: "bnc", "nbc".
        stride: pixels per cell.
        channels: C.
        overwritten: whether the network later changes the module's output in place.
    """

    axes: str
    stride: int
    channels: int
    overwritten: bool = False

    def read(self, output: Any, name: str, size: tuple[int, int]) -> Tensor:
        """Convert the output of the module to a map.

        Args:
            output: the module's output.
            name: name of its map.
            size: (height, width) of the padded images.

        Returns:
            (B, C, H, W).

        Raises:
            UserError: when there are not as many tokens as the images have cells.
        """
        if self.axes == "bchw":
            return output
        if self.axes == "bhwc":
            return output.permute(0, 3, 1, 2)
        height, width = (-(-side // self.stride) for side in size)
        tokens = output if self.axes == "bnc" else output.transpose(0, 1)
        if tokens.shape[1] != height * width:
            raise UserError(
                f"{module_path(name)} returns {tokens.shape[1]} tokens for padded images of "
                f"{size[0]} x {size[1]} pixels, where its stride of {self.stride} makes them "
                f"{height} x {width}: it cannot be read as a map, so take it out of LEVELS."
            )
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    @property
    def spec(self) -> ShapeSpec:
        """The map's shape, as ``backbone.output_shape()`` describes it."""
        return ShapeSpec(channels=self.channels, stride=self.stride)


@dataclass
class Seen:
    """What a model returned in one run.

    Attributes:
        outputs: outputs of modules, by the names of their maps.
        versions: how often each output had been changed in place when its module returned it.
        maps: maps of the backbone.
        size: (height, width) of the padded images.
    """

    outputs: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    maps: Any = None
    size: tuple[int, int] = (0, 0)

    def keep(self, name: str, layout: Layout | None, *of_the_hook: Any) -> Tensor | None:
        """Keep a module's output, as a forward hook.

        A network that would change the output in place is given a copy to go on with.

        Raises:
            UserError: when the module runs a second time.
        """
        if name in self.outputs:
            raise UserError(
                f"{module_path(name)} runs several times in a step, so it has no one map: name a "
                "module in LEVELS that runs once."
            )
        self.outputs[name] = output = of_the_hook[-1]
        self.versions[name] = getattr(output, "_version", 0)
        # The copy is not kept, because the gradient of the model's own losses is measured here.
        return output.clone() if layout and layout.overwritten else None

    def is_overwritten(self, name: str) -> bool:
        """Whether an output was changed in place after its module returned it."""
        return getattr(self.outputs[name], "_version", 0) != self.versions[name]

    def keep_maps(self, backbone: nn.Module, inputs: tuple[Tensor], maps: Any) -> None:
        """Keep the backbone's maps, as a forward hook."""
        self.maps = maps
        if inputs:
            self.size = tuple(inputs[0].shape[-2:])

    def features(self, model: nn.Module, layouts: Mapping[str, Layout], batch: Batch) -> Features:
        """Return the maps of the backbone and of the modules in ``layouts``."""
        for name in layouts:
            if name not in self.outputs:
                raise UserError(
                    f"{module_path(name)} has not run in this step: name a module in LEVELS that "
                    "runs in each."
                )
            if self.is_overwritten(name):
                raise UserError(
                    f"The network changes in place what {module_path(name)} returns: name a module "
                    "in LEVELS that contains it or follows it."
                )
        maps = {
            name: layout.read(self.outputs[name], name, self.size)
            for name, layout in layouts.items()
        }
        strides = {name: layout.stride for name, layout in layouts.items()}
        return Features(
            {**self.maps, **maps},
            {**feature_strides(model.backbone), **strides},
            image_sizes(batch),
        )


def look(
    model: nn.Module,
    batch: Batch,
    layouts: Mapping[str, Layout],
    images: Tensor | None = None,
    backbone: Callable[[Tensor], dict[str, Tensor]] | None = None,
) -> Features:
    """Return a model's maps of a batch. Only the backbone runs if it contains all modules.

    Args:
        model: as :class:`~.teacher.Teacher` takes it.
        batch: images in the model's own channel order.
        layouts: layouts of the modules whose maps are wanted beside the backbone's.
        images: the batch as the model preprocesses it, (B, 3, H, W), if the caller has it.
        backbone: runs in place of the model's backbone.
    """
    with watched(model, layouts) as seen:
        if all(name.startswith("backbone/") for name in layouts):
            images = preprocess(model, batch).tensor if images is None else images
            maps = (backbone or model.backbone)(images)
            seen.maps, seen.size = maps, tuple(images.shape[-2:])
        else:
            model(batch)
    return seen.features(model, layouts, batch)


@contextmanager
def watched(model: nn.Module, layouts: Mapping[str, Layout | None]) -> Iterator[Seen]:
    """Keep the outputs of modules inside the context.

    Args:
        model: the model of the modules.
        layouts: layouts of the modules, by the names of their maps; None: not known yet.
    """
    seen = Seen()
    hooks = [model.backbone.register_forward_hook(seen.keep_maps)] if layouts else []
    for name, layout in layouts.items():
        module = model.get_submodule(module_path(name))
        hooks.append(module.register_forward_hook(partial(seen.keep, name, layout)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# ------------------------------------------------------------------ layouts


def module_paths(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the names that are paths of modules and not maps of the backbone."""
    maps, modules = model.backbone.output_shape(), dict(model.named_modules())
    return [name for name in dict.fromkeys(names) if name not in maps and name in modules]


def find_layouts(model: nn.Module, paths: Sequence[str]) -> dict[str, Layout]:
    """Find how modules return their maps, by one run on noise without gradients.

    The model, the statistics of its norms and the random state do not change.

    Args:
        model: the model of the modules.
        paths: paths of the modules.

    Returns:
        The layout of each, by the name of its map.

    Raises:
        UserError: when a module does not run, or its output is no map or can be read in two ways.
    """
    if not paths:
        return {}
    training = [(module, module.training) for module in model.modules()]
    names = dict.fromkeys(map_name(path) for path in paths)
    try:
        with random_state.kept(), torch.no_grad(), watched(model.eval(), names) as seen:
            _run(model)
    finally:
        for module, mode in training:
            module.training = mode
    return {name: _layout(seen, name) for name in names}


def _run(model: nn.Module) -> None:
    divisor = max(1, getattr(model.backbone, "size_divisibility", 0))
    # some ViTs accept no image larger than the square that they pad to
    limit = getattr(model.backbone, "padding_constraints", {}).get("square_size", 0) or max(PROBE)
    height, width = (-(-min(side, limit) // divisor) * divisor for side in PROBE)
    images = 255 * torch.rand(2, 3, height, width)
    if takes_tensors(model):
        device = next(model.parameters()).device
        model(
            {"images": images.to(device), "labels": torch.zeros(2, dtype=torch.long, device=device)}
        )
    else:
        boxes = Boxes([[0, 0, width, height]])
        given = {"height": height, "width": width}
        # Fast R-CNN asks for proposals, and other models do not look at them
        given["proposals"] = Instances((height, width), proposal_boxes=boxes)
        model([{"image": image, **given} for image in images])


def _layout(seen: Seen, name: str) -> Layout:
    path = module_path(name)
    if name not in seen.outputs:
        raise UserError(f"{path} does not run in evaluation: name a module in LEVELS that does.")
    output = seen.outputs[name]
    if not isinstance(output, Tensor):
        raise UserError(
            f"{path} returns a {type(output).__name__}: name a module in LEVELS whose output is a "
            "tensor."
        )
    found = [*_readings(tuple(output.shape), *seen.size)]
    if len(found) != 1:
        what = "can be read in two ways" if found else "is no map"
        raise UserError(
            f"{path} returns a tensor of {tuple(output.shape)} for 2 images of {seen.size[0]} x "
            f"{seen.size[1]} pixels, which {what}: name a module in LEVELS that returns "
            "(B, C, H, W), (B, H, W, C) or tokens."
        )
    return replace(found[0], overwritten=seen.is_overwritten(name))


def _readings(shape: tuple[int, ...], height: int, width: int, batch: int = 2) -> Iterator[Layout]:
    if len(shape) == 4 and shape[0] == batch:
        for axes, (h, w), channels in (
            ("bchw", shape[2:], shape[1]),
            ("bhwc", shape[1:3], shape[3]),
        ):
            stride = -(-height // h)
            if (-(-height // stride), -(-width // stride)) == (h, w):
                yield Layout(axes, stride, channels)
    if len(shape) == 3:
        for axes, b, n in (("bnc", *shape[:2]), ("nbc", shape[1], shape[0])):
            stride = round((height * width / n) ** 0.5)
            cells = -(-height // stride) * -(-width // stride) if stride else 0
            if b == batch and cells == n:
                yield Layout(axes, stride, shape[2])
