"""Load weights: all files that Detectron2's checkpointer takes, and torchvision's ImageNet files.

No file can run code. A pickle may hold only arrays, torch files are read with weights only, and
``.safetensors`` files hold nothing else.

A path ``torchvision://ResNet18_Weights.IMAGENET1K_V1`` names weights of torchvision. They are
downloaded once. torchvision's ResNets (timm's have the same layout) and its MobileNetV2 are
recognised by their keys. These files must fill their whole part of the model, otherwise they are
refused. If the model is a classifier, a ResNet's classifier is loaded too.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.utils.file_io import PathManager
from safetensors.torch import load_file
from torch import nn

from dpk_det.checkpoint.arrays import load_arrays
from dpk_det.checkpoint.torchvision import RENAMES
from dpk_det.errors import UserError

# Anchors and pixel statistics come from the config, and counters are not weights.
_NO_WEIGHT = re.compile(r"num_batches_tracked$|anchor_generator|^pixel_(mean|std)$")
# The parts of a model that torchvision's ImageNet files fill, in Detectron2's ResNets and in
# timm's networks in TimmBackbone.
_IMAGENET_PART = re.compile(r"(?:^|\.)(stem|res[2-5]|body)\.")


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for more layouts. It remembers which weights did not match.

    Args:
        model: gets the weights.
        parts: names that the model may have as a part of the file ("backbone.bottom_up"). The first
            name in the file is used. A file without any of these names is loaded whole.

    Attributes:
        incompatible: mismatches of the last load, as :func:`load_weights` returns them.
        from_imagenet: whether a loaded file was recognised as torchvision's.
    """

    from_imagenet = False

    def __init__(self, model: nn.Module, parts: Sequence[str] = ()) -> None:
        super().__init__(model)
        self.prefixes = [f"{part}." for part in parts]

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".safetensors"):  # only newer versions of torch.load() read it
            loaded = {"model": load_file(filename)}
        else:
            loaded = _read(filename) if filename.endswith(".pkl") else super()._load_file(filename)
        check_finite(loaded["model"], filename)
        # A distiller belongs to one training: another one has another teacher, or begins anew.
        state = {k: v for k, v in loaded["model"].items() if not k.startswith("distiller.")}
        loaded["model"] = state
        for prefix in self.prefixes:
            part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if part:
                state = loaded["model"] = part
                break
        for key, rename in RENAMES.items():
            if key in state:
                self.from_imagenet = True
                renamed = rename(state)
                if isinstance(getattr(self.model, "head", None), nn.Linear):  # a classifier
                    renamed |= {f"head.{k[3:]}": v for k, v in state.items() if k[:3] == "fc."}
                return {"model": renamed, "matching_heuristics": True}
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self.incompatible = super()._load_model(checkpoint)
        for keys in (self.incompatible.missing_keys, self.incompatible.unexpected_keys):
            # the distiller's weights often come or go, and logging them would fill a screen
            keys[:] = [key for key in keys if not key.startswith("distiller.")]
        return self.incompatible


def load_weights(model: nn.Module, path: str, key: str = "MODEL.WEIGHTS") -> Any:
    """Load those weights that match a model. Detectron2 logs all others.

    Heads for other classes stay random, but the backbone's bottom-up network must fit: no weight
    may have another shape, and at most half of them may be missing.

    Args:
        model: gets the weights in place. path: file or URL; "" loads nothing.
        key: the config key that holds the path, for the error message.

    Returns:
        fvcore's ``missing_keys``, ``unexpected_keys`` and ``incorrect_shapes``, or None without a
        path.

    Raises:
        UserError: if the file does not exist, cannot be fetched, is not a checkpoint, or belongs to
            another network.
    """
    found = _load(model, path, key)
    if found and hasattr(model, "backbone"):
        has_neck = hasattr(model.backbone, "bottom_up")
        _check_network(model, "backbone.bottom_up." if has_neck else "backbone.", found, path, key)
    return found


def _load(model: nn.Module, path: str, key: str, parts: Sequence[str] = ()) -> Any:
    if not path:
        return None
    find_weights(path, key)
    checkpointer = Checkpointer(model, parts)
    try:
        checkpointer.load(path, checkpointables=[])
    except UserError:
        raise
    except Exception as e:  # files that are no checkpoint raise errors of every kind
        raise UserError(f"The file {path} is no checkpoint ({_why(e)}): check {key}.") from e
    if checkpointer.from_imagenet:
        _check_imagenet(model, checkpointer.incompatible, path, key)
    return checkpointer.incompatible


def find_weights(path: str, key: str) -> None:
    """Check that there are weights at a path or URL. A URL is fetched.

    Args:
        key: the config key that holds the path, for the error message.

    Raises:
        UserError: if there is no file, or it cannot be fetched.
    """
    try:
        # the suffix is for the newest Detectron2, whose URL handlers lack exists()
        file = path.removesuffix("?matching_heuristics=True")
        found = PathManager.isfile(PathManager.get_local_path(file))
    except OSError as e:  # also from the download
        raise UserError(f"The weights at {path} cannot be had ({e}): check {key}.") from e
    if not found:
        raise UserError(f"There are no weights at {path}: give {key} an existing file or URL.")


def _read(filename: str) -> dict[str, Any]:
    """Read a ``.pkl`` as Detectron2's checkpointer does, but without running code in it."""
    with PathManager.open(filename, "rb") as file:
        data = load_arrays(file)
    if "model" in data and "__author__" in data:  # Detectron2's model zoo
        return data
    blobs = data.get("blobs", data)  # Detectron or Caffe2; a classifier has no "blobs"
    state = {key: value for key, value in blobs.items() if not key.endswith("_momentum")}
    return {"model": state, "__author__": "Caffe2", "matching_heuristics": True}


def _why(error: Exception) -> str:
    message = str(error)
    if message.startswith("Weights only load failed"):
        # the rest of torch's message explains how to run the code in the file
        found = re.search(r"GLOBAL (\S+)", message)
        return f"it holds {found[1] if found else 'something else'}, and weights alone are read"
    return " ".join(message.split())[:300] or repr(error)


def check_finite(state: Mapping[str, Any], path: str) -> None:
    """Check that weights are tensors or arrays of finite numbers.

    Raises:
        UserError: names the file and the first weight that holds infinity or NaN.
    """
    for name, value in state.items():
        value = torch.as_tensor(value)
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"The weight {name} in {path} holds infinity or NaN: that training failed, so take "
                "an earlier checkpoint or another file."
            )


def _check_network(model: nn.Module, prefix: str, found: Any, path: str, key: str) -> None:
    own = [x for x in model.state_dict() if x.startswith(prefix) and not _NO_WEIGHT.search(x)]
    misshapen = [x for x in found.incorrect_shapes if x[0].startswith(prefix)]
    missing = {*own} & {*found.missing_keys}
    if misshapen:
        name, theirs, ours = misshapen[0]
        raise UserError(
            f"The weights at {path} are of another backbone: {len(misshapen)} have another shape, "
            f"{name} {tuple(theirs)} where the config wants {tuple(ours)}; give {key} the weights "
            "of this backbone, or the config (MODEL.RESNETS.DEPTH, RES2_OUT_CHANNELS, ...) the "
            "backbone of these."
        )
    if 2 * len(missing) > len(own):
        raise UserError(
            f"The weights at {path} are of another backbone: {len(missing)} of its {len(own)} are "
            f"not there, {min(missing)} among them; give {key} the weights of this backbone."
        )


def _check_imagenet(model: nn.Module, found: Any, path: str, key: str) -> None:
    # Detectron2 would only log mismatches, among all the other weights of a detector, and go on
    def part(name: str) -> str | None:
        match = _IMAGENET_PART.search(name)
        return match and match[1]

    parts = {part(name) for name in model.state_dict()} - {None}
    misfits = [
        name
        for name in sorted({*found.missing_keys, *found.unexpected_keys})
        if part(name) in parts and not _NO_WEIGHT.search(name)
    ]
    if misfits or not parts:
        what = f"{len(misfits)} do not fit, {', '.join(misfits[:3])}" if misfits else "none fits"
        wanted = (
            "load those of timm's networks by MODEL.TIMM.WEIGHTS"
            if "body" in parts
            else f"give {key} those of the depth, widths and stem that MODEL.RESNETS has"
        )
        raise UserError(
            f"The ImageNet weights at {path} are not of this backbone ({what}): {wanted}."
        )
    if any(x.conv1.stride != (1, 1) for x in model.modules() if isinstance(x, BottleneckBlock)):
        raise UserError(
            f"The weights at {path} are of a ResNet with strides in its 3x3 convolutions: set "
            "MODEL.RESNETS.STRIDE_IN_1X1 to False."
        )


def load_backbone_weights(model: nn.Module, path: str) -> Any:
    """Load only the bottom-up network of a model's backbone, otherwise like :func:`load_weights`.

    Args:
        model: a detector or classifier.
        path: a checkpoint of a detector or classifier, from which only that network is read, or a
            file that holds only the network; "" loads nothing.

    Raises:
        UserError: as :func:`load_weights` does.
    """
    network = getattr(model.backbone, "bottom_up", model.backbone)
    parts = "backbone.bottom_up", "backbone"  # with a neck, or without one as in a classifier
    key = "MODEL.BACKBONE_WEIGHTS"
    found = _load(network, path, key, parts)
    if found:
        _check_network(network, "", found, path, key)
    return found


def load_weights_strictly(model: nn.Module, path: str, key: str) -> None:
    """Load weights that must fit the whole model: none missing, none left over.

    Left-over weights are an error, because a ResNet-101's weights fill a ResNet-50 without a gap.

    Args:
        model: gets the weights in place.
        path: file or URL.
        key: as for :func:`load_weights`.

    Raises:
        UserError: if there is no file, or weights do not fit; the message names the first of them.
    """
    found = _load(model, path, key)
    for what, names in (
        # first, because weights of another shape are also missing
        ("of another shape in the file", [name for name, *_ in found.incorrect_shapes]),
        ("missing from the file", found.missing_keys),
        ("in the file but not in the model", found.unexpected_keys),
    ):
        names = sorted(name for name in names if not _NO_WEIGHT.search(name))
        if names:
            raise UserError(
                f"The weights at {path} are not of this architecture: {len(names)} "
                f"{'is' if len(names) == 1 else 'are'} {what}, {', '.join(names[:3])}"
                f"{', ...' if len(names) > 3 else ''}; give {key} the weights of that model."
            )
