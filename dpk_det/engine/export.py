"""From a training's checkpoint to the plain student's."""

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.modeling import build_model

from dpk_det.checkpoint import load_weights_strictly
from dpk_det.config import load_config, plain_architecture

from .trainer import count_parameters


def export_student(config_file: str, weights: str, output: str, opts: Sequence[str] = ()) -> str:
    """Write the student's weights alone, as unmodified Detectron2 loads them.

    Args:
        config_file: config of the training. weights: its checkpoint. output: file to write, *.pth.
        opts: further overrides of the config.

    Returns:
        A line that says what was written.

    Raises:
        UserError: when a file is absent or a weight of the student is missing.
    """
    cfg = plain_architecture(load_config(config_file, opts))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    load_weights_strictly(model, weights, "WEIGHTS")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict()}, output)
    num_parameters = count_parameters(model)
    return f"Wrote {output}: {cfg.MODEL.META_ARCHITECTURE} with {num_parameters:,} parameters."
