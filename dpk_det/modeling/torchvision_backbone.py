"""Any of torchvision's classifiers that is made of maps, as a backbone of Detectron2."""

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from dpk_det.distill.registry import find
from dpk_det.errors import REFUSALS, UserError, reason

from .fpn import build_fpn
from .ready_made import NAMES, PROBE, check_statistics, map_name

Operations = dict[str, tuple[int, int] | None]
"""Those of a network, in order: path to stride and channels of the map that is made; None: none."""


class Stage(NamedTuple):
    """The last part of a network at a stride.

    Attributes:
        path: in the network. stride: pixels a cell of its map. channels: of its map.
    """

    path: str
    stride: int
    channels: int


class TorchvisionBackbone(Backbone):
    """What of a network leads to some of its maps; the rest is left out.

    Weights have torchvision's names, after ``body.``. Its maps are named as Detectron2's ResNet
    names its own, by stride: res2 has stride 4.

    Args:
        network: one of torchvision's classifiers. stages: those that give maps, finest first.

    Attributes:
        body: gives the maps by name. It has a graph for training and one for evaluation, which
            ``train()`` chooses from.
    """

    def __init__(self, network: nn.Module, stages: Sequence[Stage]) -> None:
        super().__init__()
        named = {map_name(stage.stride): stage for stage in stages}
        nodes = {stage.path: name for name, stage in named.items()}
        self.body = create_feature_extractor(network, nodes, suppress_diff_warning=True)
        self._out_features = list(named)
        self._out_feature_strides = {name: stage.stride for name, stage in named.items()}
        self._out_feature_channels = {name: stage.channels for name, stage in named.items()}

    @property
    def size_divisibility(self) -> int:
        """Sides of images have to be multiples of the coarsest stride, so that maps fit."""
        return max(self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) to maps (B, C, H / stride, W / stride) by name."""
        return self.body(x)


@BACKBONE_REGISTRY.register()
def build_torchvision_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionBackbone:
    """The network that ``cfg.MODEL.TORCHVISION`` describes, with no neck.

    ``MODEL.BACKBONE.FREEZE_AT``: k freezes all up to the map of stride 2**k, statistics of
    BatchNorm included, which is Detectron2's counting of stem (1) and stages (2 for res2). A
    network that has no map of this stride is not frozen.

    Raises:
        UserError: for a name of a network or of weights that torchvision lacks (naming the
            nearest), a network without maps or without those that are asked for, weights that
            cannot be had, or images that have not three channels.
    """
    return _build(cfg, input_shape, NAMES)


@BACKBONE_REGISTRY.register()
def build_torchvision_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The network that ``cfg.MODEL.TORCHVISION`` describes, with the FPN of ``cfg.MODEL.FPN``.

    Raises:
        UserError: as :func:`build_torchvision_backbone` and :func:`.build_fpn` do.
    """
    # What the neck does not read is not built: weights that learn nothing are an error in
    # distributed training.
    return build_fpn(_build(cfg, input_shape, cfg.MODEL.FPN.IN_FEATURES or NAMES), cfg)


def _build(cfg: CfgNode, input_shape: ShapeSpec, usual: Sequence[str]) -> TorchvisionBackbone:
    node = cfg.MODEL.TORCHVISION
    if input_shape.channels != 3:
        raise UserError(
            f"torchvision's networks take images of three channels, not {input_shape.channels}: "
            "give MODEL.PIXEL_MEAN and MODEL.PIXEL_STD three values."
        )
    network = _build_network(cfg)
    made = _trace(network, node.NAME)
    stages = {map_name(stage.stride): stage for stage in find_stages(made)}
    wanted = list(node.OUT_FEATURES) or [name for name in usual if name in stages]
    if not wanted or not set(wanted) <= set(stages):
        there = ", ".join(f"{name} (stride {stage.stride})" for name, stage in stages.items())
        raise UserError(
            f"MODEL.TORCHVISION.OUT_FEATURES is {list(node.OUT_FEATURES)}, but torchvision's "
            f"{node.NAME} has {there or 'no maps that keep the geometry of an image'}: choose "
            f"{'from these' if there else 'another network'}."
        )
    chosen = [stage for name, stage in stages.items() if name in wanted]
    backbone = TorchvisionBackbone(network, chosen)
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    if freeze_at > 0 and f"res{freeze_at}" in stages:
        _freeze(backbone.body, list(made), stages[f"res{freeze_at}"].path)
    conversions = {
        "": lambda x: x,
        "FrozenBN": FrozenBatchNorm2d.convert_frozen_batchnorm,
        "SyncBN": nn.SyncBatchNorm.convert_sync_batchnorm,
    }
    backbone.body = find(conversions, node.NORM, "MODEL.TORCHVISION.NORM")(backbone.body)
    return backbone


def _build_network(cfg: CfgNode) -> nn.Module:
    node = cfg.MODEL.TORCHVISION
    names = dict.fromkeys(models.list_models(module=models))
    find(names, node.NAME, "network of torchvision's (MODEL.TORCHVISION.NAME)")
    weights = None
    if node.WEIGHTS:
        known = {x.name: x for x in models.get_model_weights(node.NAME)}
        what = f"weights of torchvision's {node.NAME} (MODEL.TORCHVISION.WEIGHTS)"
        weights = find(known, node.WEIGHTS.rpartition(".")[2], what)
        trained = weights.transforms()
        check_statistics(cfg, f"torchvision's {node.NAME}", trained.mean, trained.std)
    try:
        return models.get_model(node.NAME, weights=weights, **node.KWARGS)
    except OSError as e:  # of the network, or of torch's cache
        raise UserError(
            f"The weights {node.WEIGHTS} of torchvision's {node.NAME} cannot be had ({reason(e)}): "
            f"put {weights.url if weights else 'them'} into the folder hub/checkpoints of "
            "$TORCH_HOME."
        ) from e
    except REFUSALS as e:
        raise UserError(
            f"torchvision cannot build {node.NAME} ({reason(e)}): check MODEL.TORCHVISION.KWARGS "
            "and MODEL.TORCHVISION.WEIGHTS."
        ) from e


@torch.no_grad()
def _trace(network: nn.Module, name: str) -> Operations:
    """What each operation of a network makes of an image."""
    height, width = PROBE
    was_training = network.training
    try:
        train, nodes = get_graph_node_names(network, suppress_diff_warning=True)
        extractor = create_feature_extractor(
            network,
            train_return_nodes=train[-1:],
            eval_return_nodes=nodes,
            suppress_diff_warning=True,
        ).eval()  # statistics are not to move
        weight = next(network.parameters())
        made = extractor(weight.new_zeros(1, 3, height, width))
    except REFUSALS as e:
        raise UserError(
            f"torchvision's {name} does not take an image of {height} x {width} pixels "
            f"({reason(e)}): choose a network that takes any size."
        ) from e
    network.train(was_training)
    return {path: _map_of(made[path]) for path in nodes[1:]}  # the first is the image itself


def _map_of(value: object) -> tuple[int, int] | None:
    """Stride and channels, where an operation has made a map that keeps the image's geometry."""
    height, width = PROBE
    if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[2] < 2:
        return None
    stride = height // value.shape[2]
    same = (stride * value.shape[2], stride * value.shape[3]) == (height, width)
    return (stride, value.shape[1]) if same and stride & (stride - 1) == 0 else None


def find_stages(made: Operations) -> list[Stage]:
    """The last part of a network at each stride, from fine to coarse.

    The parts are those that the network itself is made of. One that halves the map more than once,
    as ``features`` does, is looked into; one that does it once is not, for what happens inside of
    a block before its stride is the next stage's.

    Args:
        made: of all operations of the network.
    """
    last = {part.stride: part for part in _parts(list(made.items()), "", 1)}
    return [last[stride] for stride in sorted(last)]


def _parts(
    operations: Sequence[tuple[str, tuple[int, int] | None]], prefix: str, before: int
) -> list[Stage]:
    """The parts below a prefix, in order; ``before``: stride of what they are given."""

    def part(operation: tuple[str, tuple[int, int] | None]) -> str:
        return prefix + operation[0].removeprefix(prefix).partition(".")[0]

    found = []
    for path, group in groupby(operations, part):
        inside = list(group)
        end, shape = inside[-1]
        if shape is None:
            continue
        if shape[0] > 2 * before and end != path:
            found += _parts(inside, f"{path}.", before)
        else:
            found.append(Stage(path, *shape))
        before = shape[0]
    return found


def _freeze(body: nn.Module, operations: Sequence[str], end: str) -> None:
    """Freeze what an image passes up to the part ``end``, of operations in order."""
    place = max(i for i, path in enumerate(operations) if f"{path}.".startswith(f"{end}."))
    passed = operations[: place + 1]
    within = {parent for path in passed for parent in _parents(path)}
    for path, module in list(body.named_modules()):
        # an operation may be a module with others in it, such as a convolution with its norm
        if path in within or not _parents(path).isdisjoint(passed):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(module, nn.BatchNorm2d):
                body.set_submodule(path, FrozenBatchNorm2d.convert_frozen_batchnorm(module))


def _parents(path: str) -> set[str]:
    """A path and those above it."""
    return set(accumulate(path.split("."), "{}.{}".format))
