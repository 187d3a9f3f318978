"""Exports networks to TorchScript or ONNX: traces an example, and describes them in JSON."""

import importlib.util
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.export.flatten import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Instances
from torch import Tensor, nn

from dpk_det.architectures import classifies
from dpk_det.data import categories, register_image_datasets, register_json_datasets
from dpk_det.errors import UserError

# field of Detectron2's instances -> name of the output, and its content for n detections
_OUTPUTS = {
    "pred_boxes": ("boxes", "(n, 4): x0, y0, x1, y1 in pixels of the image that was given"),
    "pred_classes": ("classes", "(n,): places in the list of classes"),
    "scores": ("scores", "(n,): 0 to 1, descending"),
    "pred_masks": ("masks", "(n, 1, m, m): 0 to 1, stretched over the box"),
    "pred_keypoints": ("keypoints", "(n, K, 3): x, y in pixels, score"),
    "sem_seg": ("sem_seg", "(1, C, H, W): logits, the image's padding at the right and below"),
}
_OPSET = 16  # the first whose RoiAlign has the half-pixel shift that Detectron2's heads use

Axes = Mapping[str, Mapping[int, str]]
"""Name of the input, then of each output in order -> names of its axes of variable size."""


Written = tuple[dict[Path, bytes], str]
"""Path -> content of each file to write, and a sentence on what the files need, or an empty one."""


def torchscript(model: nn.Module, cfg: CfgNode, output: str) -> Written:
    """Export the network as TorchScript for the CPU, and its JSON; needs torch and torchvision.

    Args:
        model: the plain model of ``cfg``. Afterwards it can only be used for tracing.
        cfg: config of the plain model.
        output: path of the file.

    Raises:
        UserError: if the model cannot be exported in this format.
    """
    return _traced(model, cfg, output, "TorchScript", _write_torchscript)


def onnx(model: nn.Module, cfg: CfgNode, output: str) -> Written:
    """Export the network as ONNX, and its JSON; otherwise like :func:`torchscript`."""
    if not importlib.util.find_spec("onnx"):
        raise UserError(f"Writing {output} takes the package onnx: pip install onnx.")
    if cfg.MODEL.KEYPOINT_ON:  # torch would fail and print its whole graph
        raise UserError(
            "ONNX cannot hold how Detectron2 places keypoints, a loop over the detections: export "
            "to TorchScript (.ts), which can."
        )
    return _traced(model, cfg, output, "ONNX", _write_onnx)


def _write_torchscript(adapter: TracingAdapter, axes: Axes, buffer: io.BytesIO) -> None:
    # no second trace to compare with: the tests compare the outputs
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    torch.jit.save(traced, buffer)  # given a path, it aborts the process if the disk is full


def _write_onnx(adapter: TracingAdapter, axes: Axes, buffer: io.BytesIO) -> None:
    # dynamo=False: the newer exporter cannot follow sizes that depend on the detections
    torch.onnx.export(
        adapter,
        adapter.flattened_inputs,
        buffer,
        dynamo=False,
        opset_version=_OPSET,
        input_names=list(axes)[:1],
        output_names=list(axes)[1:],
        dynamic_axes=axes,
    )


def _traced(
    model: nn.Module,
    cfg: CfgNode,
    output: str,
    form: str,
    write: Callable[[TracingAdapter, Axes, io.BytesIO], None],
) -> Written:
    task = _classification(cfg) if classifies(cfg) else _detection(cfg)
    _make_traceable(model)
    adapter = TracingAdapter(model, task.example, task.run).eval()
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about tracing itself
            adapter(*adapter.flattened_inputs)
            names = adapter.outputs_schema.keys
            write(adapter, {name: task.axes[name] for name in (task.input, *names)}, buffer)
    except Exception as e:  # exporters raise errors of every kind
        reason = (str(e).splitlines() or [repr(e)])[0].partition("[Caused by")[0].strip(" .")
        raise UserError(
            f"A {cfg.MODEL.META_ARCHITECTURE} like this cannot be written as {form} ({reason}): "
            "docs/using.md lists what can."
        ) from e
    values = {"values": "float32, 0 to 255, not normalised", "channels": cfg.INPUT.FORMAT}
    content = {
        task.input: {"size": task.size, **values, **task.resizing},
        "outputs": {name: task.outputs[name] for name in names},  # in their order
        "classes": _class_names(cfg),
    }
    description = json.dumps(content, indent=2) + "\n"
    return {Path(output): buffer.getvalue(), Path(f"{output}.json"): description.encode()}, ""


class _Task(NamedTuple):
    """Inputs and outputs of one kind of network.

    Attributes:
        input: name of the input.
        size: shape of the input.
        example: an input of the model.
        run: maps the model and an input to outputs by name.
        outputs: name of each possible output -> its content.
        axes: axes of variable size, of input and outputs.
        resizing: numbers by which images are resized.
    """

    input: str
    size: str
    example: Any
    run: Callable[[nn.Module, Any], dict[str, Tensor]]
    outputs: dict[str, str]
    axes: Axes
    resizing: dict[str, int]


def _noise(*size: int) -> Tensor:
    return 255 * torch.rand(size, generator=torch.Generator().manual_seed(0))


def _detection(cfg: CfgNode) -> _Task:
    shorter, outputs = cfg.INPUT.MIN_SIZE_TEST, dict(_OUTPUTS.values())
    height = shorter or 480  # 0: images are not resized
    return _Task(
        input="image",
        size="(3, H, W)",
        example=[{"image": _noise(3, height, height * 4 // 3)}],
        run=_detect,
        outputs=outputs,
        axes={
            "image": {1: "height", 2: "width"},
            **{name: {0: "n"} for name in outputs},
            "sem_seg": {2: "padded_height", 3: "padded_width"},
        },
        resizing={"shorter_side": shorter, "longer_side_at_most": cfg.INPUT.MAX_SIZE_TEST},
    )


def _classification(cfg: CfgNode) -> _Task:
    node = cfg.INPUT.IMAGES
    return _Task(
        input="images",
        size="(B, 3, H, W)",
        example={"images": _noise(2, 3, node.SIZE, node.SIZE)},
        run=lambda model, batch: {"scores": model(batch).softmax(1)},
        outputs={"scores": "(B, K): probability of each class"},
        axes={"images": {0: "B", 2: "height", 3: "width"}, "scores": {0: "B"}},
        resizing={
            "shorter_side": node.SIZE if node.IN_MEMORY else node.RESIZE_TEST,
            "side_of_the_middle": node.SIZE,
        },
    )


def _detect(model: nn.Module, inputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the outputs of one image by name, before boxes are scaled and masks pasted."""
    if isinstance(model, GeneralizedRCNN):
        found = model.inference(inputs, do_postprocess=False)
    else:
        found = [x["instances"] for x in model(inputs)]
    fields: dict[str, Any] = {}
    if isinstance(found, tuple):  # from a PanopticFPN
        found, fields["sem_seg"] = found
    fields |= found[0].get_fields()
    fields["pred_boxes"] = fields["pred_boxes"].tensor
    return {name: fields[field] for field, (name, _) in _OUTPUTS.items() if field in fields}


def _make_traceable(model: nn.Module) -> None:
    """Replace methods of this model that a trace cannot hold, or that ONNX has no operator for."""
    if isinstance(model, DenseDetector):
        # Detectron2 0.6 compares limit and number in Python, so a trace would always keep the same
        decode = model._decode_per_level_predictions
        limit, model.test_topk_candidates = model.test_topk_candidates, sys.maxsize
        model._decode_per_level_predictions = lambda *args: decode(*args)[:limit]
    for module in model.modules():
        if getattr(type(module), "_run_stage", None) is CascadeROIHeads._run_stage:
            module._run_stage = partial(_run_cascade_stage, module)
        if isinstance(module, nn.ChannelShuffle):
            module.forward = partial(_shuffle, module.groups)


def _run_cascade_stage(
    heads: CascadeROIHeads, features: list[Tensor], proposals: list[Instances], stage: int
) -> Any:
    # Detectron2's method without its scaling of gradients, for which there is no operator
    pooled = heads.box_pooler(features, [x.proposal_boxes for x in proposals])
    return heads.box_predictor[stage](heads.box_head[stage](pooled))


def _shuffle(groups: int, x: Tensor) -> Tensor:
    num, channels, height, width = x.shape
    x = x.reshape(num, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(num, channels, height, width)


def _class_names(cfg: CfgNode) -> list[str] | None:
    register_json_datasets(cfg)
    register_image_datasets(cfg)
    try:
        return list(categories(cfg).values())
    except UserError as e:  # an export does not need the dataset, so it may be absent
        logging.getLogger(__name__).warning("The classes stay without names: %s", e)
        return None
