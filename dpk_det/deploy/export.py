"""Exports the plain student from a training's checkpoint: weights, TorchScript or ONNX."""

import argparse
import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from detectron2.config import CfgNode
from torch import nn

from dpk_det.architectures import build, plain_architecture
from dpk_det.checkpoint.loading import load_weights_strictly
from dpk_det.config.loading import load_config
from dpk_det.deploy.plain_config import describe_plain_config, is_plain_config
from dpk_det.deploy.tracing import Written, onnx, torchscript
from dpk_det.engine.ends import exit_on_user_error
from dpk_det.engine.results import count_parameters
from dpk_det.errors import UserError
from dpk_det.files import whole_file


def export_student(config_file: str, weights: str, output: str, opts: Sequence[str] = ()) -> str:
    """Write the student alone, in the format of the output's suffix.

    ``.pth``: its weights, as unmodified Detectron2 loads them, and beside them the plain model's
    config (``student.yaml``, see :func:`describe_plain_config`). ``.safetensors``: the same weights
    and config, for this project's commands and other programs that read this format. ``.ts``:
    TorchScript for the CPU, which needs torch and torchvision. ``.onnx``: ONNX. The last two hold
    the whole network, including normalisation. They take images that are already resized, float32
    from 0 to 255: one image (3, H, W), or for a classifier a batch (B, 3, H, W). A JSON file beside
    them (``student.onnx.json``) describes inputs and outputs. Their weights require no gradients.
    Files are complete or absent.

    Args:
        config_file: config of the training.
        weights: checkpoint of the training.
        output: file to write.
        opts: further overrides of the config.

    Returns:
        A line that says what was written.

    Raises:
        UserError: if the suffix is another, a source file is absent or would be replaced, as would
            a config that no export has written, the output cannot be written, a weight of the
            student is missing, or the model cannot be exported in this format.
    """
    write = _WRITERS.get(Path(output).suffix)
    if not write:
        raise UserError(
            f"The suffix of {output} names no form to export to: end it in {', '.join(_WRITERS)}."
        )
    _check_targets(output, {"--config-file": config_file, "WEIGHTS": weights})
    cfg = plain_architecture(load_config(config_file, opts))
    device, cfg.MODEL.DEVICE = cfg.MODEL.DEVICE, "cpu"
    model = build(cfg).eval().requires_grad_(False)
    cfg.MODEL.DEVICE = device
    load_weights_strictly(model, weights, "WEIGHTS")
    files, needs = write(model, cfg, output)
    with contextlib.ExitStack() as stack:  # all are written before the first is renamed
        for path, content in files.items():
            stack.enter_context(whole_file(path)).write_bytes(content)
    num_parameters = count_parameters(model)
    line = f"Wrote {output}: {cfg.MODEL.META_ARCHITECTURE} with {num_parameters:,} parameters."
    return f"{line} {needs}".strip()


def _check_targets(output: str, sources: Mapping[str, str]) -> None:
    targets, config = [output], _config_beside(output)
    if _WRITERS[Path(output).suffix] is _weights:
        targets.append(str(config))
    replaced = {os.path.realpath(path) for path in targets}
    for what, source in sources.items():
        if os.path.realpath(Path(source).expanduser()) in replaced:
            raise UserError(
                f"The export to {output} would replace {source}, which {what} names: choose "
                "another output."
            )
    # nobody names this file, and it may be a _BASE_
    if str(config) in targets and config.is_file() and not is_plain_config(config):
        raise UserError(
            f"The export to {output} would replace {config}, which no export has written: choose "
            "another output, or move that file."
        )


def _config_beside(output: str) -> Path:
    return Path(output).with_suffix(".yaml")


def _weights(model: nn.Module, cfg: CfgNode, output: str) -> Written:
    state = model.state_dict()
    if output.endswith(".pth"):
        buffer = io.BytesIO()
        torch.save({"model": state}, buffer)
        content = buffer.getvalue()
    else:  # safetensors refuses tensors that share memory
        copies = {k: x.clone(memory_format=torch.contiguous_format) for k, x in state.items()}
        content = safetensors.torch.save(copies, {"format": "pt"})
    config, needs = describe_plain_config(cfg, output)
    return {Path(output): content, _config_beside(output): config.encode()}, needs


_WRITERS = {".pth": _weights, ".safetensors": _weights, ".ts": torchscript, ".onnx": onnx}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, or ``argv`` if it is given."""
    parser = argparse.ArgumentParser(
        description="Write the plain student alone: its weights, TorchScript or ONNX, by the "
        "suffix of the output.",
        allow_abbrev=False,
    )
    parser.add_argument("--config-file", required=True, help="config of the training")
    parser.add_argument("weights", help="checkpoint of the training")
    parser.add_argument("output", help="file to write: *.pth, *.safetensors, *.ts or *.onnx")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="further KEY VALUE overrides")
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    with exit_on_user_error():
        print(export_student(args.config_file, args.weights, args.output, args.opts))
