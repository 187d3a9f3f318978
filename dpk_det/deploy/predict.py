"""What a model finds in images and videos: drawn, and as one JSON file in COCO's format."""

import argparse
import functools
import glob
import json
import math
import os
import reprlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer
from pycocotools import mask as mask_util
from tqdm import tqdm

from dpk_det.architectures import build, classifies, plain_architecture
from dpk_det.checkpoint.loading import load_weights_strictly
from dpk_det.config.loading import load_config
from dpk_det.data import (
    categories,
    fit_for_evaluation,
    register_image_datasets,
    register_json_datasets,
)
from dpk_det.deploy.inputs import (
    IMAGES,
    VIDEOS,
    Drawing,
    FileError,
    frames,
    frames_per_second,
    is_video,
)
from dpk_det.engine.launch import exit_on_user_error, use_device
from dpk_det.errors import UserError, find, mistakes
from dpk_det.files import write_whole
from dpk_det.pairing.batches import flip_channels

PREDICTIONS = "predictions.json"
DRAWINGS = "drawings"
LEGIBLE = 240
"""Shorter side in pixels that a drawing of a classifier's at least has."""
NAMED = 10
"""Files that failed are named in the last sentence, up to this many; all are in the JSON file."""


def predict(
    cfg: CfgNode,
    weights: str,
    files: Sequence[Path],
    output: Path,
    threshold: float | None = None,
    drawings: bool = True,
) -> str:
    """Detect objects in images and videos, or classify these, with the plain model of a config.

    Writes ``predictions.json``, a COCO dataset of its own with the lists images (a video's frames
    are images of its name, told apart by ``frame``, from 0), annotations and categories. An
    annotation is a detection: its ``score`` beside the usual fields, masks run-length encoded,
    keypoints with their score in place of the visibility; a classifier's is one of the likeliest
    classes, with its ``score`` alone. pycocotools opens it as it is, so images and class names go
    along; a detector's list of annotations alone is what ``COCO.loadRes`` takes. All are drawn
    below ``drawings`` under the inputs' names, videos as .mp4. Every file is complete or absent.

    Files that cannot be read, looked at (such as an image of 1 x 20000 pixels) or drawn are passed
    over. They stand with the reason in the JSON file, as ``info["failed"]``.

    Args:
        cfg: of the training or the plain model; images are resized as its evaluation does, class
            names and category ids are those of the first dataset in ``DATASETS.TEST``.
        weights: checkpoint, which must fit the plain model whole.
        files: from :func:`find_inputs`. output: folder to write to.
        threshold: score from which a detection or class counts, 0 to 1, None: 0.5 and 0; the
            config's own limits hold as well, and alone for segments.
        drawings: whether to draw.

    Returns:
        A line that says what was written.

    Raises:
        UserError: when the threshold is no share, the weights do not fit, the model takes no
            colours, classes are not known or it finds nothing of a kind that is known here, the
            drawings would replace inputs, ``output`` cannot be written to; after all others, for
            files that failed.
    """
    if threshold is not None and not 0 <= threshold <= 1:  # nor NaN
        raise UserError(f"The threshold {threshold} is no score: give --threshold one of 0 to 1.")
    cfg = plain_architecture(cfg)
    use_device(cfg)
    names = categories(cfg)
    if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
        raise UserError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, but Detectron2's predictor makes images BGR or "
            "RGB: evaluate such a model by tools/train_net.py --eval-only."
        )
    root = Path(os.path.commonpath([file.parent for file in files]))
    targets = _drawing_paths(files, root, output / DRAWINGS)
    finder = (_Classifying if classifies(cfg) else _Detecting)(cfg, weights, names, threshold)
    _make_writable(output)
    if drawings:
        _check_no_input_is_replaced(files, targets)

    found = Findings(names)
    failed: dict[str, str] = {}
    info = {"description": f"{finder.what} of {weights}", "score_from": finder.threshold}
    info |= {"images": str(root), "failed": failed}
    path = output / PREDICTIONS
    try:
        for file, target in tqdm(zip(files, targets, strict=True), total=len(files), unit="file"):
            name = file.relative_to(root).as_posix()
            try:
                _find_in_file(finder, found, file, name, target if drawings else None)
            except FileError as e:
                failed[name] = " ".join(str(e).split())
    finally:  # what is found is kept, whatever stops the rest
        write_whole(path, json.dumps({"info": info, **found.content}))
    line = (
        f"Wrote {path}: {len(found.content['annotations'])} {finder.what} in "
        f"{len(found.content['images'])} images"
    )
    line += f", drawn below {output / DRAWINGS}." if drawings else "."
    if failed:
        named = [f"{root / name} ({reason})" for name, reason in list(failed.items())[:NAMED]]
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        raise UserError(
            f"{len(failed)} of {len(files)} files failed, {', '.join(named)}{more}: mend or leave "
            f"out these; the others are done. {line}"
        )
    return line


def _find_in_file(
    finder: "_Detecting | _Classifying",
    found: "Findings",
    file: Path,
    name: str,
    target: Path | None,
) -> None:
    video = is_video(file)
    draw = finder.painter()
    with Drawing(target, frames_per_second(file) if video else None) as drawing:
        for frame, image in enumerate(frames(file)):
            outputs = _attempt("looked at", finder.find, image)
            try:
                if target:
                    drawing.write(_attempt("drawn", draw, image, outputs))
            finally:  # after the drawing, for it shifts keypoints to pixels' corners in place
                extra = {"frame": frame} if video else {}
                found.add(name, image, finder.annotations(outputs), **extra)


def _attempt(what: str, do: Callable[..., Any], *args: Any) -> Any:
    try:
        return do(*args)
    except UserError:  # holds for all files
        raise
    except Exception as e:  # such as no pixel left of the shorter side after resizing
        reason = (str(e).splitlines() or [""])[0]
        raise FileError(f"cannot be {what}: {type(e).__name__}: {reason}") from e


def _drawing_paths(files: Sequence[Path], root: Path, folder: Path) -> list[Path]:
    # a.avi becomes a.avi.mp4, which may be the name of another input
    names = [file.relative_to(root) for file in files]
    taken = set(names)
    targets = []
    for name in names:
        target = name
        while is_video(name) and (target.suffix != ".mp4" or (target != name and target in taken)):
            target = target.with_name(f"{target.name}.mp4")
        taken.add(target)
        targets.append(folder / target)
    return targets


def _check_no_input_is_replaced(files: Sequence[Path], targets: Sequence[Path]) -> None:
    replaced = {os.path.realpath(file) for file in files} & {os.path.realpath(x) for x in targets}
    if replaced:
        raise UserError(
            f"The drawings would replace the input {min(replaced)}: choose another --output, or "
            "--no-drawings."
        )


def _make_writable(output: Path) -> None:
    # found out before hours of looking at images
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except (OSError, ValueError) as e:  # the latter of NUL in it
        raise UserError(
            f"The output {str(output)!r} is no folder that can be written to "
            f"({getattr(e, 'strerror', None) or e}): choose another --output."
        ) from e


def find_inputs(inputs: Iterable[str]) -> list[Path]:
    """The images and videos that names of files, folders and globs stand for, each once.

    Of a folder those directly in it, sorted; ``"folder/**"`` is a glob for those further below.

    Returns:
        Absolute paths.

    Raises:
        UserError: when one of the names stands for none.
    """
    files: dict[Path, None] = {}
    for given in inputs:
        try:
            candidates = _candidates(given)
            usable = [
                Path(os.path.abspath(x))
                for x in candidates
                if x.suffix.lower() in IMAGES + VIDEOS and x.is_file()
            ]
        except (OSError, ValueError, RuntimeError) as e:  # no access, no such user's home, ...
            reason = getattr(e, "strerror", None) or e
            raise UserError(
                f"The input {reprlib.repr(given)} cannot be looked at ({reason}): correct it."
            ) from e
        if not usable:
            raise UserError(
                f"The input {given} is no image, video, folder or glob of such: give files that "
                f"end in {', '.join(IMAGES + VIDEOS)}."
            )
        files |= dict.fromkeys(usable)
    return list(files)


def _candidates(given: str) -> list[Path]:
    if not given:  # an empty variable of a shell's, which would stand for the working directory
        return []
    path = Path(given).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(path.iterdir())
    return sorted(map(Path, glob.glob(str(path), recursive=True)))


class Findings:
    """A COCO dataset of what was found.

    Args:
        categories: category id -> name, in the order of the model's classes.
    """

    def __init__(self, categories: dict[int, str]) -> None:
        self.ids = list(categories)
        self.content: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": id_, "name": name} for id_, name in categories.items()],
        }

    def add(
        self, file_name: str, image: np.ndarray, found: Iterable[dict[str, Any]], **extra: Any
    ) -> None:
        """Add an image (H, W, 3) and what was found in it.

        Args:
            found: annotations, whose ``category_id`` is still the class's number and whose ids are
                given here. extra: more fields of the image.
        """
        images, annotations = self.content["images"], self.content["annotations"]
        image_id = len(images) + 1
        size = {"height": image.shape[0], "width": image.shape[1]}
        images.append({"id": image_id, "file_name": file_name, **size, **extra})
        for x in found:
            ids = {"image_id": image_id, "category_id": self.ids[x["category_id"]]}
            annotations.append({"id": len(annotations) + 1, **x, **ids})


Painter = Callable[[np.ndarray, Any], np.ndarray]
"""Draws what was found on an image (H, W, 3) BGR: a new one."""


class _Detecting:
    """A detector, its images prepared and its outputs filtered by Detectron2's predictor."""

    what = "detections"

    def __init__(
        self, cfg: CfgNode, weights: str, names: dict[int, str], threshold: float | None
    ) -> None:
        self.threshold = 0.5 if threshold is None else threshold
        if cfg.DATASETS.TEST:
            self._metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        else:
            self._metadata = Metadata(thing_classes=list(names.values()))
        cfg.MODEL.WEIGHTS = ""  # the predictor would take whatever fits
        with mistakes(
            f"A {cfg.MODEL.META_ARCHITECTURE} like this cannot be built", "correct MODEL"
        ):
            self._predictor = DefaultPredictor(cfg)
        load_weights_strictly(self._predictor.model, weights, "--weights")

    def find(self, image: np.ndarray) -> dict[str, Any]:
        outputs = self._predictor(image)
        if "instances" not in outputs:
            raise UserError(
                f"A {type(self._predictor.model).__name__} gives {', '.join(outputs)}, no "
                "instances: choose a detector."
            )
        instances = outputs["instances"].to("cpu")
        return {**outputs, "instances": instances[instances.scores >= self.threshold]}

    def annotations(self, outputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for found in instances_to_coco_json(outputs["instances"], 0):
            if "segmentation" in found:
                area = float(mask_util.area(found["segmentation"]))
            else:
                area = found["bbox"][2] * found["bbox"][3]
            yield {**found, "area": area, "iscrowd": 0}

    def painter(self) -> Painter:
        visualizer = VideoVisualizer(self._metadata)  # an image is a video of one frame
        return functools.partial(_draw, visualizer)


class _Classifying:
    """A classifier, which is given images as its evaluation gives them; its likeliest classes."""

    what = "classes"
    most = 5

    def __init__(
        self, cfg: CfgNode, weights: str, names: dict[int, str], threshold: float | None
    ) -> None:
        self.threshold = threshold or 0.0
        self._names, self._flips = list(names.values()), cfg.INPUT.FORMAT == "BGR"
        self._fit = fit_for_evaluation(cfg)
        self._model = build(cfg).eval()
        load_weights_strictly(self._model, weights, "--weights")

    @torch.no_grad()
    def find(self, image: np.ndarray) -> list[tuple[int, float]]:
        rgb = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)
        batch = {"images": self._fit(rgb).unsqueeze(0)}
        scores = self._model(flip_channels(batch) if self._flips else batch)[0].softmax(0)
        top = scores.topk(min(self.most, len(scores)))
        ranked = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [(number, score) for number, score in ranked if score >= self.threshold]

    def annotations(self, found: list[tuple[int, float]]) -> Iterator[dict[str, Any]]:
        for number, score in found:
            yield {"image_id": 0, "category_id": number, "score": score}

    def painter(self) -> Painter:
        return self._draw

    def _draw(self, image: np.ndarray, found: list[tuple[int, float]]) -> np.ndarray:
        # small images are enlarged, for the text to find a place
        scale = max(1, math.ceil(LEGIBLE / min(image.shape[:2])))
        visualizer = Visualizer(image[:, :, ::-1], scale=scale)
        lines = [f"{self._names[number]} {score:.0%}" for number, score in found]
        if lines:
            corner = (2 / scale, 2 / scale)
            visualizer.draw_text("\n".join(lines), corner, color="w", horizontal_alignment="left")
        return np.ascontiguousarray(visualizer.output.get_image()[:, :, ::-1])


def _draw(visualizer: VideoVisualizer, image: np.ndarray, outputs: dict[str, Any]) -> np.ndarray:
    """(H, W, 3) BGR with what was found on it: segments where there are names for all."""
    rgb = image[:, :, ::-1]
    if "panoptic_seg" in outputs and visualizer.metadata.get("stuff_classes"):
        segments, info = outputs["panoptic_seg"]
        drawn = visualizer.draw_panoptic_seg_predictions(rgb, segments.to("cpu"), info)
    else:
        drawn = visualizer.draw_instance_predictions(rgb, outputs["instances"])
    return np.ascontiguousarray(drawn.get_image()[:, :, ::-1])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``sys.argv`` when none is given."""
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
        print(predict(cfg, args.weights, files, args.output, args.threshold, drawings))
