"""Runs a model on images and videos: draws what it finds, and writes it to one COCO JSON file."""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from tqdm import tqdm

from dpk_det.architectures import classifies, plain_architecture
from dpk_det.config.loading import load_config
from dpk_det.data import categories, register_image_datasets, register_json_datasets
from dpk_det.deploy.drawing import Drawing, Painter, drawing_paths
from dpk_det.deploy.finders import Classifying, Detecting
from dpk_det.deploy.findings import Findings
from dpk_det.deploy.inputs import FileError, find_inputs, frames, frames_per_second, is_video
from dpk_det.engine.ends import exit_on_user_error
from dpk_det.engine.launch import use_device
from dpk_det.errors import UserError, find

PREDICTIONS = "predictions.json"
DRAWINGS = "drawings"


def predict(
    cfg: CfgNode,
    weights: str,
    files: Sequence[Path],
    output: Path,
    threshold: float | None = None,
    drawings: bool = True,
    beside: str = "",
) -> str:
    """Detect objects in images and videos, or classify them, with the plain model of a config.

    It writes ``predictions.json`` (see :class:`Findings`), and drawings below ``drawings`` under
    the inputs' names, videos as .mp4. Every file is complete or absent. Files that cannot be read,
    drawn or given to the model (such as an image of 1 x 20000 pixels) are skipped.

    Args:
        cfg: config of the training or the plain model. Images are resized as in its evaluation.
            Class names and category ids are those of the first dataset in ``DATASETS.TEST``.
        weights: checkpoint, which must fit the plain model completely.
        files: from :func:`find_inputs`.
        output: folder to write to.
        threshold: least score, 0 to 1; None: 0.5 for detections, 0 for classes. The config's own
            limits hold as well; only these apply to segments.
        drawings: whether to draw.
        beside: another checkpoint of the same model, whose findings are only drawn, to the right.

    Returns:
        A line that says what was written.

    Raises:
        UserError: if an argument is unsuitable, the model takes no colours, or the drawings would
            replace inputs; at the end, if files failed.
    """
    if threshold is not None and not 0 <= threshold <= 1:  # nor is NaN
        raise UserError(f"The threshold {threshold} is no score: give --threshold one of 0 to 1.")
    if beside and not drawings:
        raise UserError("--beside is for drawings: give it without --no-drawings.")
    cfg = plain_architecture(cfg)
    use_device(cfg)
    names = categories(cfg)
    root = Path(os.path.commonpath([file.parent for file in files]))
    finders = _finders(cfg, [weights, beside] if beside else [weights], names, threshold)
    _make_writable(output)
    targets = drawing_paths(files, root, output / DRAWINGS) if drawings else [None] * len(files)

    what, path = finders[0].what, output / PREDICTIONS
    score = finders[0].threshold
    found = Findings(names, root, description=f"{what} of {weights}", score_from=score)
    try:
        for file, target in tqdm(zip(files, targets, strict=True), total=len(files), unit="file"):
            try:
                _find_in_file(finders, found, file, target)
            except FileError as e:
                found.add_failure(file, e)
    finally:  # keeps what was found, whatever stops the rest
        annotations, images = found.write(path)
    drawn = f", drawn below {output / DRAWINGS}" if drawings else ""
    line = f"Wrote {path}: {annotations} {what} in {images} images{drawn}."
    found.check_failures(len(files), line)
    return line


def _finders(
    cfg: CfgNode, weights: Sequence[str], names: dict[int, str], threshold: float | None
) -> list[Detecting | Classifying]:
    if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
        raise UserError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, but Detectron2's predictor makes images BGR or "
            "RGB: evaluate such a model by tools/train_net.py --eval-only."
        )
    make = Classifying if classifies(cfg) else Detecting
    return [make(cfg.clone(), path, names, threshold) for path in weights]  # make changes cfg


def _find_in_file(
    finders: Sequence[Detecting | Classifying], found: Findings, file: Path, target: Path | None
) -> None:
    video = is_video(file)
    painters = [finder.painter() for finder in finders]
    with Drawing(target, frames_per_second(file) if video else None) as drawing:
        for frame, image in enumerate(frames(file)):
            outputs = [_attempt("looked at", finder.find, image) for finder in finders]
            try:
                if target:
                    drawing.write(_attempt("drawn", _draw, painters, image, outputs))
            finally:  # after drawing, because annotations() shifts keypoints by -0.5 in place
                extra = {"frame": frame} if video else {}
                found.add(file, image, finders[0].annotations(outputs[0]), **extra)


def _draw(painters: Sequence[Painter], image: np.ndarray, outputs: Sequence[Any]) -> np.ndarray:
    """Return one image (H, W, 3) BGR with the drawings of several models side by side."""
    drawn = [paint(image, found) for paint, found in zip(painters, outputs, strict=True)]
    return np.ascontiguousarray(np.hstack(drawn))


def _attempt(what: str, do: Callable[..., Any], *args: Any) -> Any:
    try:
        return do(*args)
    except UserError:  # concerns all files
        raise
    except Exception as e:  # such as a shorter side of 0 pixels after resizing
        reason = (str(e).splitlines() or [""])[0]
        raise FileError(f"cannot be {what}: {type(e).__name__}: {reason}") from e


def _make_writable(output: Path) -> None:
    # checked before hours of predictions
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except (OSError, ValueError) as e:  # ValueError: it contains NUL
        raise UserError(
            f"The output {str(output)!r} is no folder that can be written to "
            f"({getattr(e, 'strerror', None) or e}): choose another --output."
        ) from e


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, or ``argv`` if it is given."""
    parser = argparse.ArgumentParser(
        description="Detect objects in images and videos, or classify these, with a trained "
        "student or teacher.",
        allow_abbrev=False,
    )
    parser.add_argument("--config-file", required=True, help="config of the training")
    parser.add_argument("--weights", required=True, help="checkpoint, of a distilling training too")
    parser.add_argument(
        "--input", required=True, nargs="+", help="images, videos, folders and globs of such"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument(
        "--threshold",
        type=float,
        help="score that counts (default: 0.5; of a classifier's five likeliest classes 0)",
    )
    parser.add_argument(
        "--beside",
        default="",
        metavar="WEIGHTS",
        help="another checkpoint of the same model, such as the plain student's, whose findings "
        "are drawn to the right",
    )
    parser.add_argument("--no-drawings", action="store_true", help="write only the JSON file")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides, not right after --input"
    )
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    with exit_on_user_error():
        cfg = load_config(args.config_file, args.opts)
        find(dict(META_ARCH_REGISTRY), cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
        register_json_datasets(cfg)
        register_image_datasets(cfg)
        files = find_inputs(args.input)
        drawings = not args.no_drawings
        print(predict(cfg, args.weights, files, args.output, args.threshold, drawings, args.beside))
