"""From a training's checkpoint to a file of the plain student: weights, TorchScript or ONNX."""

import contextlib
import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.export.flatten import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch import dense_detector
from detectron2.modeling.roi_heads import cascade_rcnn
from torch import Tensor, nn

from dpk_det.architectures import build, classifies, plain_architecture
from dpk_det.checkpoint.loading import load_weights_strictly
from dpk_det.config.loading import load_config
from dpk_det.data import (
    categories,
    register_image_datasets,
    register_json_datasets,
)
from dpk_det.deploy.plain_config import describe_plain_config
from dpk_det.engine.trainer import count_parameters
from dpk_det.errors import UserError
from dpk_det.files import whole_file

# n detections; a field of Detectron2's instances -> name of the output, what it holds
_OUTPUTS = {
    "pred_boxes": ("boxes", "(n, 4): x0, y0, x1, y1 in pixels of the image that was given"),
    "pred_classes": ("classes", "(n,): places in the list of classes"),
    "scores": ("scores", "(n,): 0 to 1, descending"),
    "pred_masks": ("masks", "(n, 1, m, m): 0 to 1, stretched over the box"),
    "pred_keypoints": ("keypoints", "(n, K, 3): x, y in pixels, score"),
    "sem_seg": ("sem_seg", "(1, C, H, W): logits, the image's padding at the right and below"),
}
_OPSET = 16  # the first whose RoiAlign has the half-pixel shift that Detectron2's heads use


def export_student(config_file: str, weights: str, output: str, opts: Sequence[str] = ()) -> str:
    """Write the student alone, in the form that the output's suffix names.

    ``.pth``: its weights, as unmodified Detectron2 loads them, and beside them the plain model's
    config (``student.yaml``, see :func:`describe_plain_config`). ``.ts``: TorchScript for the CPU,
    which needs torch and torchvision. ``.onnx``: ONNX. The last two take one image (3, H, W), a
    classifier's a batch (B, 3, H, W), float32 of 0 to 255, already resized, and hold the rest of
    the network, normalisation included; a JSON file beside them (``student.onnx.json``) says what
    goes in and what comes out. Nothing in them wants gradients. Files are complete or absent.

    Args:
        config_file: config of the training. weights: its checkpoint. output: file to write.
        opts: further overrides of the config.

    Returns:
        A line that says what was written.

    Raises:
        UserError: when the suffix is another, a file is absent, would be replaced by what is made
            of it or cannot be written, a weight of the student is missing, or the model cannot be
            had in that form.
    """
    write = _WRITERS.get(Path(output).suffix)
    if not write:
        raise UserError(
            f"The suffix of {output} names no form to export to: end it in {', '.join(_WRITERS)}."
        )
    _check_no_source_is_replaced(output, {"--config-file": config_file, "WEIGHTS": weights})
    cfg = plain_architecture(load_config(config_file, opts))
    device, cfg.MODEL.DEVICE = cfg.MODEL.DEVICE, "cpu"
    model = build(cfg).eval().requires_grad_(False)
    cfg.MODEL.DEVICE = device
    load_weights_strictly(model, weights, "WEIGHTS")
    files, needs = write(model, cfg, output)
    _write_all(files)
    num_parameters = count_parameters(model)
    line = f"Wrote {output}: {cfg.MODEL.META_ARCHITECTURE} with {num_parameters:,} parameters."
    return f"{line} {needs}".strip()


class _Written(NamedTuple):
    """What to write: contents by path; and a sentence on what it needs, or none."""

    files: dict[Path, bytes]
    needs: str = ""


def _check_no_source_is_replaced(output: str, sources: Mapping[str, str]) -> None:
    targets = {os.path.realpath(path) for path in (output, _config_beside(output))}
    for what, source in sources.items():
        if os.path.realpath(Path(source).expanduser()) in targets:
            raise UserError(
                f"The export to {output} would replace {source}, which {what} names: choose "
                "another output."
            )


def _config_beside(output: str) -> Path:
    return Path(output).with_suffix(".yaml")


def _write_all(files: Mapping[Path, bytes]) -> None:
    with contextlib.ExitStack() as stack:  # all are on the disk before the first is renamed
        for path, content in files.items():
            stack.enter_context(whole_file(path)).write_bytes(content)


def _write_checkpoint(model: nn.Module, cfg: CfgNode, output: str) -> _Written:
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict()}, buffer)
    config, needs = describe_plain_config(cfg, output)
    files = {Path(output): buffer.getvalue(), _config_beside(output): config.encode()}
    return _Written(files, needs)


def _write_torchscript(model: nn.Module, cfg: CfgNode, output: str) -> _Written:
    def write(
        adapter: TracingAdapter, axes: Mapping[str, Mapping[int, str]], buffer: io.BytesIO
    ) -> None:
        # traced once; what a second trace would be compared with is what the tests compare
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        torch.jit.save(traced, buffer)  # given a path, it aborts the process where the disk is full

    return _write_traced(model, cfg, output, "TorchScript", write)


def _write_onnx(model: nn.Module, cfg: CfgNode, output: str) -> _Written:
    def write(
        adapter: TracingAdapter, axes: Mapping[str, Mapping[int, str]], buffer: io.BytesIO
    ) -> None:
        # not the newer exporter, which does not follow what depends on the number of detections
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

    if not importlib.util.find_spec("onnx"):
        raise UserError(f"Writing {output} takes the package onnx: pip install onnx.")
    if cfg.MODEL.KEYPOINT_ON:  # else torch would fail at it, and print its whole graph
        raise UserError(
            "ONNX cannot hold how Detectron2 places keypoints, a loop over the detections: export "
            "to TorchScript (.ts), which can."
        )
    return _write_traced(model, cfg, output, "ONNX", write)


_WRITERS = {".pth": _write_checkpoint, ".ts": _write_torchscript, ".onnx": _write_onnx}


def _write_traced(
    model: nn.Module,
    cfg: CfgNode,
    output: str,
    form: str,
    write: Callable[[TracingAdapter, Mapping[str, Mapping[int, str]], io.BytesIO], None],
) -> _Written:
    task = _classification(cfg) if classifies(cfg) else _detection(cfg)
    adapter = TracingAdapter(model, task.example, task.run).eval()
    buffer = io.BytesIO()
    try:
        with _traceable(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing as such
            adapter(*adapter.flattened_inputs)
            names = adapter.outputs_schema.keys
            write(adapter, {name: task.axes[name] for name in (task.input, *names)}, buffer)
    except Exception as e:  # they are of every kind
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
    files = {Path(output): buffer.getvalue(), Path(f"{output}.json"): description.encode()}
    return _Written(files)


class _Task(NamedTuple):
    """What a network of some kind is given and gives.

    Attributes:
        input, size: what the input is called, and its shape. example: of what the model takes.
        run: the model and that to outputs by name. outputs: what each of them may hold.
        axes: of input and outputs that vary. resizing: numbers by which images are resized.
    """

    input: str
    size: str
    example: Any
    run: Callable[[nn.Module, Any], dict[str, Tensor]]
    outputs: dict[str, str]
    axes: dict[str, dict[int, str]]
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
    """The detections of one image, by name of the output, before anything is scaled or pasted."""
    if isinstance(model, GeneralizedRCNN):
        found = model.inference(inputs, do_postprocess=False)
    else:
        found = [x["instances"] for x in model(inputs)]
    fields: dict[str, Any] = {}
    if isinstance(found, tuple):  # of a PanopticFPN
        found, fields["sem_seg"] = found
    fields |= found[0].get_fields()
    fields["pred_boxes"] = fields["pred_boxes"].tensor
    return {name: fields[field] for field, (name, _) in _OUTPUTS.items() if field in fields}


@contextlib.contextmanager
def _traceable() -> Iterator[None]:
    """Mend what Detectron2 0.6 has that a trace cannot hold, and what ONNX has no word for; newer
    ones of the former do without.
    """

    def smaller(limit: int, size: int | Tensor) -> int | Tensor:
        return size.clamp(max=limit) if isinstance(size, Tensor) else min(limit, size)

    def shuffle(self: nn.ChannelShuffle, x: Tensor) -> Tensor:
        num, channels, height, width = x.shape
        x = x.reshape(num, self.groups, channels // self.groups, height, width)
        return x.transpose(1, 2).reshape(num, channels, height, width)

    with (
        mock.patch.object(nn.ChannelShuffle, "forward", shuffle),  # an operator of torch's alone
        # a cascade's scaling of gradients, which is no operator; forward it is the identity
        mock.patch.object(cascade_rcnn._ScaleGradient, "apply", lambda x, scale: x),
        # min() of a limit and a size: a trace would keep whichever the example's was
        mock.patch.object(dense_detector, "min", smaller, create=True),
    ):
        yield


def _class_names(cfg: CfgNode) -> list[str] | None:
    register_json_datasets(cfg)
    register_image_datasets(cfg)
    try:
        return list(categories(cfg).values())
    except UserError as e:  # an export needs no dataset, so it may be gone
        logging.getLogger(__name__).warning("The classes stay without names: %s", e)
        return None
