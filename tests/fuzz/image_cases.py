"""Images of a training: odd ones in place of one of the dataset's, and classifiers' folders."""

import functools
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cases import EITHER, REFUSED, WORKS, Case, Proof, changed
from pictures import Picture, damaged_pictures, pictures
from world import World

KIND = "images"


def image_cases(world: World) -> list[Case]:
    """Cases of images to train with."""
    return [*_of_pictures(world), *_of_damages(world), *_of_files(world), *_of_classes(world)]


def _train(
    world: World,
    put: Callable[[Path], None],
    name: str,
    size: tuple[int, int],
    folder: Path,
) -> Proof:
    """``--check-images`` of the dataset, whose first image is another one."""
    shutil.copytree(world.images, folder / "images")
    (folder / "images" / "0.png").unlink()
    put(folder / "images" / name)
    steps = ("images.0.file_name", name), ("images.0.width", size[0]), ("images.0.height", size[1])
    content = changed(world.coco, *steps)
    for x in content["annotations"]:  # within any of them, but those of a pixel
        if x["image_id"] == 0:
            x["bbox"] = [0, 0, min(size[0], 20), min(size[1], 20)]
    file = folder / "coco.json"
    file.write_text(json.dumps(content))
    entry = f"['{file}', '{folder / 'images'}']"
    return world.train(world.tiny.plain, "DATASETS.JSON.tiny", entry, flag="--check-images")


def _case(
    world: World,
    name: str,
    expect: str,
    put: Callable[[Path], None],
    file_name: str = "odd.png",
    size: tuple[int, int] = (64, 64),
) -> Case:
    return Case(KIND, name, expect, functools.partial(_train, world, put, file_name, size))


def _writing(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)


def _of_pictures(world: World) -> Iterator[Case]:
    for x in pictures():
        yield _of_picture(world, x)
        if x.size and x.size != (1, 1):
            wrong = x._replace(name=f"{x.name}, of another size", size=(x.size[0] + 1, x.size[1]))
            if x.name in ("PNG RGB", "JPEG RGB", "EXIF orientation 6"):
                yield _of_picture(world, wrong._replace(trains=False))


def _of_picture(world: World, x: Picture) -> Case:
    expect = WORKS if x.trains else REFUSED
    if x.name == "one pixel":
        expect = EITHER
    size = x.size or {"1 x 20000": (1, 20000), "20000 x 1": (20000, 1)}.get(x.name, (64, 64))
    return _case(world, x.name, expect, _writing(x.data), f"odd{x.suffix}", size)


def _of_damages(world: World) -> Iterator[Case]:
    for number, (name, suffix, data) in enumerate(damaged_pictures(7, seed=10)):
        yield _case(world, f"damage {number}: {name}", EITHER, _writing(data), f"odd{suffix}")


def _of_files(world: World) -> Iterator[Case]:
    def broken_link(path: Path) -> None:
        path.symlink_to("nowhere.png")

    def circle(path: Path) -> None:
        path.symlink_to(path.name)

    def linked(path: Path) -> None:
        path.symlink_to(world.images / "0.png")

    for name, expect, put in (
        ("absent", REFUSED, lambda path: None),
        ("a folder", REFUSED, Path.mkdir),
        ("a link to nowhere", REFUSED, broken_link),
        ("a link to itself", REFUSED, circle),
        ("a link", WORKS, linked),
        ("a pipe", REFUSED, os.mkfifo),
    ):
        yield _case(world, f"file: {name}", expect, put)
    good = (world.images / "0.png").read_bytes()
    for name in ("with blank.png", "ünï☃.png", "no suffix", "deep.er.png", "quo'te.png", "%41.png"):
        yield _case(world, f"file named {name!r}", WORKS, _writing(good), name)


CLASSIFIER = """
MODEL:
  META_ARCHITECTURE: "ImageClassifier"
  DEVICE: "cpu"
  BACKBONE: {NAME: "build_cifar_backbone"}
  CIFAR: {NAME: "resnet8"}
  CLASSIFIER: {NUM_CLASSES: 2}
INPUT:
  IMAGES: {SIZE: 32, IN_MEMORY: %s, BATCH_TEST: 4, RESIZE_TEST: 32}
DATASETS:
  IMAGES: {odd: "%s"}
  TRAIN: ["odd"]
  TEST: ["odd"]
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 4, BASE_LR: 0.01, MAX_ITER: 3}
VERSION: 2
OUTPUT_DIR: output
"""


def _of_classes(world: World) -> Iterator[Case]:
    good = (world.images / "0.png").read_bytes()
    whole = {f"{kind}/{i}.png": good for kind in "ab" for i in range(4)}

    def case(name: str, expect: str, files: dict[str, bytes], memory: bool, zipped: bool) -> Case:
        def accept(folder: Path) -> Proof:
            path = folder / "images"
            path.mkdir()
            if zipped:
                (path := folder / "images.zip").write_bytes(_zipped(files))
            for file, data in {} if zipped else files.items():
                (path / file).parent.mkdir(exist_ok=True)
                (path / file).write_bytes(data)
            return _classify(world, path, memory, folder)

        how = f"{'zip' if zipped else 'folder'}, {'in memory' if memory else 'read'}"
        return Case(KIND, f"classes, {how}: {name}", expect, accept)

    for number, (name, expect, files) in enumerate(
        (
            ("whole", WORKS, whole),
            ("empty", REFUSED, {}),
            ("no folders", REFUSED, {"0.png": good, "1.png": good}),
            ("one class", REFUSED, {"a/0.png": good, "a/1.png": good}),
            ("three classes", REFUSED, whole | {"c/0.png": good}),
            ("an empty file", REFUSED, whole | {"a/0.png": b""}),
            ("a text", REFUSED, whole | {"a/0.png": b"hello"}),
            ("half an image", REFUSED, whole | {"a/0.png": good[: len(good) // 2]}),
            ("other files beside", WORKS, whole | {"a/notes.txt": b"hello"}),
        )
    ):
        for zipped in (False, True):
            yield case(name, expect, files, memory=bool(number % 2), zipped=zipped)
    for name, data in (
        ("empty", b""),
        ("a text", b"hello"),
        ("half", _zipped(whole)[:-200]),
        ("garbage", _zipped(whole)[:60] + bytes(300) + _zipped(whole)[360:]),
    ):

        def accept(folder: Path, data: bytes = data) -> Proof:
            (folder / "images.zip").write_bytes(data)
            return _classify(world, folder / "images.zip", True, folder)

        yield Case(KIND, f"classes, a zip that is {name}", REFUSED, accept)


def _classify(world: World, path: Path, memory: bool, folder: Path) -> Proof:
    config = folder / "config.yaml"
    config.write_text(CLASSIFIER % (memory, path))
    return world.train(config, flag="--check-images")


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()
