"""torchvision's ImageNet weights: their names in Detectron2 and timm, and their download.

A path ``torchvision://ResNet18_Weights.IMAGENET1K_V1`` names weights of torchvision. They are
downloaded once.
"""

import re
from collections.abc import Mapping
from typing import Any

import torchvision
from detectron2.utils.file_io import PathHandler, PathManager
from torch import Tensor

from dpk_det.errors import UserError


def rename_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ResNet's weights from the names of torchvision and timm to Detectron2's.

    The classifier is left out.
    """
    renamed = {}
    for key, value in state.items():
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            continue
        if not key.startswith("layer"):
            key = f"stem.{key}"
        key = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", key)
        key = re.sub(r"\bbn(\d)", r"conv\1.norm", key)
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[key] = value
    return renamed


def rename_torchvision_mobilenetv2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename MobileNetV2's weights from torchvision's names to those of timm in TimmBackbone.

    The last convolution, which gives no map, and the classifier are left out.
    """
    depths = (1, 2, 3, 4, 3, 3, 1)
    blocks = [f"blocks.{stage}.{i}" for stage, depth in enumerate(depths) for i in range(depth)]
    first = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}  # has no expansion
    later = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2"}
    later |= {"2": "conv_pwl", "3": "bn3"}
    layers = {"0.0": "conv_stem", "0.1": "bn1"}
    for i, block in enumerate(blocks, 1):
        names = first if i == 1 else later
        layers |= {f"{i}.conv.{theirs}": f"{block}.{ours}" for theirs, ours in names.items()}
    renamed = {}
    for key, value in state.items():
        layer, _, kind = key.removeprefix("features.").rpartition(".")
        if layer in layers and kind != "num_batches_tracked":
            renamed[f"body.{layers[layer]}.{kind}"] = value
    return renamed


RENAMES = {
    "layer1.0.conv1.weight": rename_torchvision,
    "features.1.conv.0.0.weight": rename_torchvision_mobilenetv2,
}
"""Key that identifies a file's network -> function that renames the weights."""


class _TorchvisionHandler(PathHandler):
    """Resolves ``torchvision://WEIGHTS.NAME`` to torchvision's URL. Detectron2 caches the file."""

    PREFIX = "torchvision://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        name = path.removeprefix(self.PREFIX)
        try:
            weights = torchvision.models.get_weight(name)
        except (ValueError, AttributeError, KeyError) as e:
            raise UserError(
                f"torchvision has no weights named {name}: write ResNet18_Weights.IMAGENET1K_V1 or "
                "another name that it knows."
            ) from e
        return PathManager.get_local_path(weights.url, **kwargs)


PathManager.register_handler(_TorchvisionHandler())
