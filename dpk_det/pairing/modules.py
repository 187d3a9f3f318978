"""Feature maps of modules that a backbone does not list: a stage, a transformer's encoder.

A module is named by its path in the model, ``backbone.bottom_up.res4``; its map by the same path
with slashes, for a distiller keeps layers by that name, and torch allows no dot in it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from dpk_det import random_state
from dpk_det.architectures import takes_tensors
from dpk_det.distill import Features
from dpk_det.errors import UserError
from dpk_det.pairing.batches import Batch, image_sizes
from dpk_det.pairing.preparing import feature_strides, preprocess

PROBE = 256, 384
"""Height and width of the noise that tells a module's layout: its map is no square."""


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
        axes: "bchw"; "bhwc", as Detectron2's ViT; or tokens, row by row: "bnc", "nbc".
        stride: pixels a cell. channels: C.
    """

    axes: str
    stride: int
    channels: int

    def read(self, output: Any, name: str, size: tuple[int, int]) -> Tensor:
        """What the module has returned, as a map.

        Args:
            output: of the module. name: of its map. size: (height, width) of the padded images.

        Returns:
            (B, C, H, W).

        Raises:
            UserError: when tokens are not as many as the images have cells.
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
        """As ``backbone.output_shape()`` describes a map."""
        return ShapeSpec(channels=self.channels, stride=self.stride)


@dataclass
class Seen:
    """What a model returned in one run.

    Attributes:
        outputs: of modules, by the names of their maps. maps: of the backbone.
        size: (height, width) of the padded images.
    """

    outputs: dict[str, Any] = field(default_factory=dict)
    maps: Any = None
    size: tuple[int, int] = (0, 0)

    def keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook of a module.

        Raises:
            UserError: when it runs a second time.
        """
        if name in self.outputs:
            raise UserError(
                f"{module_path(name)} runs several times in a step, so it has no one map: name a "
                "module in LEVELS that runs once."
            )
        self.outputs[name] = output

    def keep_maps(self, backbone: nn.Module, inputs: tuple[Tensor], maps: Any) -> None:
        """Forward hook of the backbone."""
        self.maps = maps
        if inputs:
            self.size = tuple(inputs[0].shape[-2:])

    def features(self, model: nn.Module, layouts: Mapping[str, Layout], batch: Batch) -> Features:
        """Maps of the backbone and of modules."""
        for name in layouts:
            if name not in self.outputs:
                raise UserError(
                    f"{module_path(name)} has not run in this step: name a module in LEVELS that "
                    "runs in each."
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
    """See a batch with a model: its backbone alone runs, where all modules are within it.

    Args:
        model: as :class:`~.teacher.Teacher` takes it. batch: in its own channel order.
        layouts: of the modules to look at beside the backbone.
        images: what the model would make of the batch, (B, 3, H, W), if somebody has made it.
        backbone: what runs in place of the model's.
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
def watched(model: nn.Module, names: Iterable[str]) -> Iterator[Seen]:
    """Keep what modules return while this is on.

    Args:
        names: of their maps.
    """
    seen = Seen()
    hooks = [model.backbone.register_forward_hook(seen.keep_maps)] if names else []
    for name in names:
        module = model.get_submodule(module_path(name))
        hooks.append(module.register_forward_hook(partial(seen.keep, name)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# ------------------------------------------------------------------ layouts


def module_paths(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those names that are paths of modules, and no maps of the backbone."""
    maps, modules = model.backbone.output_shape(), dict(model.named_modules())
    return [name for name in dict.fromkeys(names) if name not in maps and name in modules]


def find_layouts(model: nn.Module, paths: Sequence[str]) -> dict[str, Layout]:
    """Find how modules return their maps, by one run on noise, without gradients.

    The model, its norms' statistics and the random numbers stay as they were.

    Args:
        paths: of modules of the model.

    Returns:
        The layout of each, by the name of its map.

    Raises:
        UserError: when a module does not run, or what it returns is no map, or can be read as two.
    """
    if not paths:
        return {}
    training = [(module, module.training) for module in model.modules()]
    names = [map_name(path) for path in paths]
    try:
        with random_state.kept(), torch.no_grad(), watched(model.eval(), names) as seen:
            _run(model)
    finally:
        for module, mode in training:
            module.training = mode
    return {name: _layout(seen, name) for name in names}


def _run(model: nn.Module) -> None:
    divisor = max(1, getattr(model.backbone, "size_divisibility", 0))
    # some ViTs take no larger image than the square that they pad to
    limit = getattr(model.backbone, "padding_constraints", {}).get("square_size", 0) or max(PROBE)
    height, width = (-(-min(side, limit) // divisor) * divisor for side in PROBE)
    images = 255 * torch.rand(2, 3, height, width)
    if takes_tensors(model):
        device = next(model.parameters()).device
        model(
            {"images": images.to(device), "labels": torch.zeros(2, dtype=torch.long, device=device)}
        )
    else:
        model([{"image": image, "height": height, "width": width} for image in images])


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
    return found[0]


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
