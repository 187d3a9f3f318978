"""Inputs of predict: images and videos of all kinds, odd arguments, weights and outputs."""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from cases import EITHER, REFUSED, WORKS, Case, NotProven, Proof, command, damages, nothing
from pictures import damaged_pictures, pictures
from pycocotools.coco import COCO
from world import World

from dpk_det.deploy.predict import run
from dpk_det.errors import UserError

KIND = "predict"


def predict_cases(world: World) -> list[Case]:
    """Cases of inputs of predict."""
    return [*_of_pictures(world), *_of_videos(world), *_of_arguments(world), *_of_weights(world)]


def _predict(world: World, output: Path, inputs: Sequence[Any], *rest: Any, **other: Any) -> None:
    given = {"config-file": world.tiny.plain, "weights": world.weights, "threshold": 0} | other
    argv = [x for key, value in given.items() for x in (f"--{key}", value)]
    command(run, *argv, "--input", *inputs, "--output", output, *rest)


def _check(output: Path, names: Sequence[str], whole: bool = True) -> None:
    """``predictions.json`` is one, and holds the files of these names, each drawn."""
    path = output / "predictions.json"
    content = json.loads(path.read_text())
    COCO(str(path))
    found = {Path(x["file_name"]).name for x in content["images"]}
    if missing := {*names} - found:
        raise NotProven(f"no word of {missing}, but of {found}")
    if not content["annotations"]:
        raise NotProven("nothing was found")
    half = [x for x in output.rglob("*") if x.name.startswith(".partial")]
    drawn = {x.name for x in (output / "drawings").iterdir()}
    if half or {*names} - drawn:
        raise NotProven(f"drawn is {drawn}, half is {half}")
    for x in content["images"]:
        drawing = output / "drawings" / Path(x["file_name"]).name
        if drawing.suffix != ".mp4" and "frame" not in x:
            image = cv2.imread(str(drawing))
            if image is None or image.shape[:2] != (x["height"], x["width"]):
                raise NotProven(f"{drawing} is no drawing of {x}")


def _beside_a_good_one(world: World, file_name: str, data: bytes, folder: Path) -> Proof:
    """Predict on a file and on one that is whole, which must be done whatever the other is."""
    (folder / "in").mkdir()
    (folder / "in" / file_name).write_bytes(data)
    (folder / "in" / "whole.png").write_bytes((world.images / "0.png").read_bytes())
    try:
        _predict(world, folder / "out", [folder / "in"])
    except UserError as e:
        _check(folder / "out", ["whole.png"])
        if file_name not in str(e):
            raise NotProven(f"{file_name} is not named: {e}") from e
        raise
    names = ["whole.png", f"{file_name}.mp4" if file_name[-4:] == ".avi" else file_name]
    if file_name[-4:] in (".avi", ".mp4"):
        return nothing
    return functools.partial(_check, folder / "out", names)


def _of_pictures(world: World) -> Iterator[Case]:
    for x in pictures():
        accept = functools.partial(_beside_a_good_one, world, f"odd{x.suffix}", x.data)
        yield Case(KIND, f"image: {x.name}", WORKS if x.size else REFUSED, accept)
    for number, (name, suffix, data) in enumerate(damaged_pictures(4, seed=20)):
        accept = functools.partial(_beside_a_good_one, world, f"odd{suffix}", data)
        yield Case(KIND, f"image, damage {number}: {name}", EITHER, accept)


def _of_videos(world: World) -> Iterator[Case]:
    def case(name: str, expect: str, file_name: str, data: bytes) -> Case:
        accept = functools.partial(_beside_a_good_one, world, file_name, data)
        return Case(KIND, f"video: {name}", expect, accept)

    avi, mp4 = _video(world, ".avi", "MJPG"), _video(world, ".mp4", "mp4v")
    yield case("AVI", WORKS, "odd.avi", avi)
    yield case("MP4", WORKS, "odd.mp4", mp4)
    yield case("MP4 named .avi", WORKS, "odd.avi", mp4)
    yield case("empty", REFUSED, "odd.mp4", b"")
    yield case("a text", REFUSED, "odd.mp4", b"no video")
    yield case("NUL", REFUSED, "odd.avi", bytes(5000))
    yield case("without frames", REFUSED, "odd.mp4", _video(world, ".mp4", "mp4v", 0))
    yield case("without its end", REFUSED, "odd.mp4", mp4[: len(mp4) // 2])
    for number, (name, data) in enumerate(damages(avi, 6, seed=30)):
        yield case(f"damage {number}: {name}", EITHER, "odd.avi", data)
    for number, (name, data) in enumerate(damages(mp4, 6, seed=31)):
        yield case(f"damage {number + 6}: {name}", EITHER, "odd.mp4", data)


def _video(world: World, suffix: str, codec: str, count: int = 4) -> bytes:
    path = world.folder / f"video{count}{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10.0, (64, 48))
    for i in range(count):
        writer.write(np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    return path.read_bytes() if path.exists() else b""


def _of_arguments(world: World) -> Iterator[Case]:
    image = world.images / "0.png"

    def case(name: str, expect: str, *rest: Any, inputs: Any = (image,), **other: Any) -> Case:
        def accept(folder: Path) -> Proof:
            (folder / "file").write_text("mine")
            output = folder / other.pop("output", "out")
            _predict(world, output, inputs, *rest, **other)
            return functools.partial(_check, output, ["0.png"])

        return Case(KIND, name, expect, accept)

    for value in ("nan", "-1", "2", "x", "inf", "-inf", "1.0001", "", "None", "1e400", "0,5"):
        yield case(f"--threshold {value!r}", REFUSED, threshold=value)
    for value in ("0", "1e-9", "-0"):
        yield case(f"--threshold {value!r}", WORKS, threshold=value)
    for value in ("gone.png", "", "~nobody/x", "a\0b", "x" * 5000, "[", "*.gif", "/", "/dev/null"):
        yield case(f"--input {value[:20]!r}", REFUSED, inputs=[value])
    yield case("--input of one file twice", WORKS, inputs=[image, image, world.images])
    yield case("--input of a glob", WORKS, inputs=[f"{world.images}/**"])
    for value in ("file", "file/below", "/proc/x", "a\0b", "x" * 300):
        yield case(f"--output {value[:20]!r}", REFUSED, output=value)
    yield case("--output of deep folders", WORKS, output="a/b/c")
    for value in ("gone.yaml", "/", "", world.images / "0.png", "a\0b"):
        name = f"--config-file {Path(value).name!r} {len(str(value)) > 0}"
        yield case(name, REFUSED, **{"config-file": value})
    yield case("an unknown argument", REFUSED, "--nope")
    for opts in (
        ("NOPE", "1"),
        ("A",),
        ("INPUT.FORMAT", "L"),
        ("INPUT.FORMAT", "x"),
        ("INPUT.MIN_SIZE_TEST", "-5"),
        ("INPUT.MAX_SIZE_TEST", "0"),
        ("INPUT.MAX_SIZE_TEST", "-5"),
        ("MODEL.META_ARCHITECTURE", "x"),
        ("MODEL.BACKBONE.NAME", "x"),
        ("MODEL.DEVICE", "x"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "3"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "0"),
        ("MODEL.PIXEL_STD", "[0.0, 0.0, 0.0]"),
        ("MODEL.FPN.OUT_CHANNELS", "8"),
        ("DATASETS.TEST", "('gone',)"),
        ("DATASETS.JSON.tiny", "['gone.json', 'gone']"),
        ("TEST.DETECTIONS_PER_IMAGE", "-1"),
    ):
        yield case(f"overrides: {' '.join(opts)}", REFUSED, *opts)
    for opts in (
        ("INPUT.FORMAT", "RGB"),
        ("INPUT.MIN_SIZE_TEST", "0"),
        ("DATASETS.TEST", "()"),
        ("SOLVER.BASE_LR", "1"),
    ):
        yield case(f"overrides: {' '.join(opts)}", WORKS, *opts)


def _of_weights(world: World) -> Iterator[Case]:
    state = torch.load(world.weights)["model"]
    first = next(iter(state))

    def case(name: str, expect: str, content: Any) -> Case:
        def accept(folder: Path) -> Proof:
            file = folder / "weights.pth"
            if isinstance(content, bytes):
                file.write_bytes(content)
            elif content == "folder":
                file.mkdir()
            elif content == "pipe":
                os.mkfifo(file)
            elif content is not None:
                torch.save(content, file)
            _predict(world, folder / "out", [world.images / "0.png"], weights=file)
            return functools.partial(_check, folder / "out", ["0.png"])

        return Case(KIND, f"weights: {name}", expect, accept)

    for name, content in (
        ("absent", None),
        ("a folder", "folder"),
        ("a pipe", "pipe"),
        ("empty", b""),
        ("a text", b"hello"),
        ("NUL", bytes(3000)),
        ("a list", [1]),
        ("a model of texts", {"model": dict.fromkeys(state, "x")}),
        ("a weight missing", {"model": {k: v for k, v in state.items() if k != first}}),
        ("a weight too many", {"model": state | {"other.weight": state[first]}}),
        ("another shape", {"model": state | {first: state[first][:1]}}),
        ("NaN", {"model": state | {first: state[first] * float("nan")}}),
    ):
        yield case(name, REFUSED, content)
    yield case("with an optimizer", WORKS, {"model": state, "optimizer": {}, "iteration": 5})
    for number, (name, data) in enumerate(damages(world.weights.read_bytes(), 8, seed=40)):
        yield case(f"damage {number}: {name}", EITHER, data)
