"""Any timm network that gives feature maps, as a Detectron2 backbone.

Only the builders import timm. The import takes most of a second, which `import dpk_det` thus saves.
"""

import logging
import math
import pickle
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from dpk_det.checkpoint.loading import check_finite, find_weights
from dpk_det.errors import REFUSALS, UserError, find, mistakes, nearest, reason
from dpk_det.modeling.fpn import build_fpn
from dpk_det.modeling.maps import MapsByName

_USUAL = ("res2", "res3", "res4", "res5")  # the maps that a detector usually reads
_PROBE = (64, 96)  # height and width of the trial image that shows a network's maps


class TimmBackbone(MapsByName):
    """A timm network that was built with ``features_only``.

    Its maps are named by stride as in Detectron2's ResNet: res2 has stride 4.

    Args:
        body: the network; returns a list of maps.
        name: name of the network in error messages.
        channels: C of the input images.

    Attributes:
        body: as given.

    Raises:
        UserError: if two maps share a stride, or a stride is not a power of two. Also if a trial
            image shows that the network needs a fixed size, or that maps do not fit their strides.
    """

    def __init__(self, body: nn.Module, name: str, channels: int = 3) -> None:
        strides, widths = body.feature_info.reduction(), body.feature_info.channels()
        if len(set(strides)) < len(strides) or any(s & (s - 1) for s in strides):
            raise UserError(
                f"The maps of {name} at MODEL.TIMM.OUT_INDICES have strides {strides}: choose one "
                "of each, all powers of two."
            )
        super().__init__(
            {
                _map_name(stride): ShapeSpec(channels=width, stride=stride)
                for stride, width in zip(strides, widths, strict=True)
            }
        )
        self.body = body
        # Swin gives (B, H, W, C). A network without `output_fmt` gives the usual (B, C, H, W).
        self._channels_last = getattr(body, "output_fmt", "NCHW") == "NHWC"
        self._try(name, channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Turn images (B, C, H, W) into maps (B, Cs, H / stride, W / stride) by name."""
        maps = self.body(x)
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return dict(zip(self.output_shape(), maps, strict=True))

    @torch.no_grad()
    def _try(self, name: str, channels: int) -> None:
        # runs on the device on which the network is built, which may be "meta"
        weight = next(self.body.parameters())
        height, width = (max(side, 2 * self.size_divisibility) for side in _PROBE)
        was_training = self.body.training
        self.body.eval()  # the trial must not change BatchNorm statistics
        with mistakes(
            f"{name} does not take an image of {height} x {width} pixels",
            "choose a network that takes any size, or tell this one to by MODEL.TIMM.KWARGS",
        ):
            maps = self(weight.new_zeros(1, channels, height, width))
        self.body.train(was_training)
        for key, spec in self.output_shape().items():
            expected = (1, spec.channels, height // spec.stride, width // spec.stride)
            if maps[key].shape != expected:
                raise UserError(
                    f"{name} makes a map of {tuple(maps[key].shape)} of an image of {height} x "
                    f"{width} pixels where stride {spec.stride} promises {expected}: choose a "
                    "network whose maps keep the image's geometry."
                )


def _map_name(stride: int) -> str:
    return f"res{int(math.log2(stride))}"


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the network that ``cfg.MODEL.TIMM`` describes, without a neck.

    ``MODEL.BACKBONE.FREEZE_AT``: k freezes every layer up to and including the stage of stride
    2**k, with its BatchNorm statistics. Detectron2 counts in the same way: 1 is the stem, 2 is
    res2. A network that has no map of this stride is not frozen.

    Raises:
        UserError: if timm lacks the name (the message names the nearest), the network has no
            feature maps or lacks an index, or weights are not found or do not fit; and as
            :class:`TimmBackbone` does.
    """
    return _build(cfg, input_shape, _USUAL)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the network that ``cfg.MODEL.TIMM`` describes, with the FPN of ``cfg.MODEL.FPN``.

    Raises:
        UserError: as :func:`build_timm_backbone` and :func:`.build_fpn` do.
    """
    # If timm can, it does not build layers that the neck does not read. Weights without a gradient
    # are an error in distributed training.
    return build_fpn(_build(cfg, input_shape, cfg.MODEL.FPN.IN_FEATURES or _USUAL), cfg)


def _build(cfg: CfgNode, input_shape: ShapeSpec, maps: Sequence[str]) -> TimmBackbone:
    node, channels = cfg.MODEL.TIMM, input_shape.channels
    body = _build_body(node, channels, maps)
    if node.WEIGHTS:
        _load(body, node, channels)
    if (node.WEIGHTS or node.PRETRAINED) and channels == 3:
        _check_statistics(cfg, body.pretrained_cfg["mean"], body.pretrained_cfg["std"])
    _freeze(body, cfg.MODEL.BACKBONE.FREEZE_AT, node.NAME)
    return TimmBackbone(_convert_norm(body, node.NORM), node.NAME, channels)


def _build_body(node: CfgNode, channels: int, maps: Sequence[str]) -> nn.Module:
    import timm

    name, kwargs = node.NAME, dict(node.KWARGS) | {"in_chans": channels, "features_only": True}
    if not timm.is_model(name):
        near = nearest(name, timm.list_models())
        hint = f"did you mean '{near}'?" if near else "timm.list_models() lists them."
        raise UserError(f"timm has no network named '{name}' (MODEL.TIMM.NAME): {hint}")
    with mistakes(
        f"timm cannot build {name} for its feature maps",
        "check MODEL.TIMM.NAME and MODEL.TIMM.KWARGS",
    ):
        # built once to list its maps; not on "meta", where some timm networks cannot be built
        strides = [x["reduction"] for x in timm.create_model(name, **kwargs).feature_info.info]
    indices = _indices(list(node.OUT_INDICES), strides, maps, name)
    try:
        return timm.create_model(
            name, out_indices=indices, pretrained=node.PRETRAINED and not node.WEIGHTS, **kwargs
        )
    except (*REFUSALS, OSError) as e:  # OSError: from the download, or from timm's cache
        raise UserError(
            f"timm has no weights of {name} to be had ({reason(e)}): put their file into "
            "MODEL.TIMM.WEIGHTS in place of MODEL.TIMM.PRETRAINED."
        ) from e


def _indices(
    wanted: list[int], strides: list[int], maps: Sequence[str], name: str
) -> tuple[int, ...]:
    if not wanted:
        last = {_map_name(stride): i for i, stride in enumerate(strides)}
        wanted = [last[key] for key in maps if key in last]
    count = len(strides)
    if not wanted or not all(-count <= i < count for i in wanted):
        raise UserError(
            f"MODEL.TIMM.OUT_INDICES is {wanted}, but {name} has maps 0 to {count - 1}, of strides "
            f"{', '.join(map(str, strides))}: choose from these."
        )
    return tuple(sorted({i % count for i in wanted}))


def _check_statistics(cfg: CfgNode, mean: Sequence[float], std: Sequence[float]) -> None:
    """Warn if images are not normalised as in the weights' training. Mean and std are on 0 to 1."""
    right = [[round(255 * x, 3) for x in values] for values in (mean, std)]
    given = [cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD]
    if not np.allclose(given, right, rtol=0, atol=0.5) or cfg.INPUT.FORMAT != "RGB":
        logging.getLogger(__name__).warning(
            "timm's %s was trained with other images than it will be given: set MODEL.PIXEL_MEAN "
            'to %s, MODEL.PIXEL_STD to %s and INPUT.FORMAT to "RGB".',
            *(cfg.MODEL.TIMM.NAME, *right),
        )


def _load(body: nn.Module, node: CfgNode, channels: int) -> None:
    # timm loads weights into a features_only network without reporting missing or left-over ones.
    # It loads the whole network, with as many classes as the file has, strictly.
    import timm
    from safetensors import SafetensorError
    from timm.models import get_pretrained_cfg, load_state_dict

    find_weights(node.WEIGHTS, "MODEL.TIMM.WEIGHTS")
    # not from the body's config, from which timm has removed the classifier
    classifiers = getattr(get_pretrained_cfg(node.NAME), "classifier", None) or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    try:
        state = load_state_dict(PathManager.get_local_path(node.WEIGHTS), weights_only=True)
        check_finite(state, node.WEIGHTS)
        heads = [state[f"{x}.weight"] for x in classifiers if f"{x}.weight" in state]
        classes = len(heads[0]) if heads else 0
        whole = timm.create_model(
            node.NAME,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": state, "num_classes": classes},
            num_classes=classes,
            in_chans=channels,
            **node.KWARGS,
        )
        # a features_only network wraps the whole one, or renames parts: "stages.0" to "stages_0"
        given = {_flat(key): value for key, value in whole.state_dict().items()}
        body.load_state_dict({key: given[_flat(key)] for key in body.state_dict()})
    except UserError:
        raise
    except (*REFUSALS, OSError, EOFError, pickle.UnpicklingError, SafetensorError) as e:
        raise UserError(
            f"The weights at {node.WEIGHTS} are not those of timm's {node.NAME} "
            f"({reason(e)}): give MODEL.TIMM.WEIGHTS the weights of that network."
        ) from e


def _flat(key: str) -> str:
    return key.removeprefix("model.").removeprefix("body.").replace(".", "_")


def _freeze(body: nn.Module, freeze_at: int, name: str) -> None:
    from timm.layers import freeze_batch_norm_2d

    ends = [x["module"] for x in body.feature_info.info if x["reduction"] == 2**freeze_at]
    if freeze_at < 1 or not ends:
        return
    modules = list(body.named_modules())  # in the order in which images pass through them
    within = [i for i, (path, _) in enumerate(modules) if _is_within(path, ends[-1])]
    if not within:
        raise UserError(
            f"timm does not say where {name}'s map of stride {2**freeze_at} ends: set "
            "MODEL.BACKBONE.FREEZE_AT to 0."
        )
    for path, module in modules[: within[-1] + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):  # timm's norms inherit these
            parent, _, child = path.rpartition(".")
            body.get_submodule(parent).add_module(child, freeze_batch_norm_2d(module))


def _is_within(path: str, part: str) -> bool:
    return f"{_flat(path)}_".startswith(f"{_flat(part)}_")


def _convert_norm(body: nn.Module, norm: str) -> nn.Module:
    # Detectron2's and torch's conversions would drop the activation that timm's BatchNorms contain
    from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

    conversions = {
        "": lambda x: x,
        "FrozenBN": freeze_batch_norm_2d,
        "SyncBN": convert_sync_batchnorm,
    }
    return find(conversions, norm, "MODEL.TIMM.NORM")(body)
