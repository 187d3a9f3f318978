"""Reads the user's data, in the form of COCO, VOC or YOLO, into COCO's JSON format."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpk_det.data.coco_format import read_coco
from dpk_det.data.voc import voc_files, voc_to_coco
from dpk_det.data.yolo import read_data_yaml, yolo_to_coco
from dpk_det.errors import UserError

FORMS = (
    "a COCO JSON file and its folder of photos, a folder of VOC's XML files and one of photos, a "
    "VOC folder with Annotations and JPEGImages, or a YOLO data.yaml"
)
"""The forms that :func:`read_sources` accepts, for help and errors."""


@dataclass(frozen=True)
class Split:
    """Annotated photos.

    Attributes:
        content: images, annotations and categories, as in COCO's JSON.
        images: folder of the photos.
        file: the JSON file that holds exactly this content, if there is one.
    """

    content: dict[str, Any]
    images: str
    file: str | None = None


def read_sources(train: Sequence[str], val: Sequence[str], share: float) -> tuple[Split, Split]:
    """Read photos to train on and photos to evaluate on.

    Args:
        train: one or two paths, see :data:`FORMS`.
        val: the same, or empty.
        share: share of the training photos to keep for evaluation, drawn at random but always the
            same. It is used only if ``val`` is empty and the source of ``train`` has no others.

    Raises:
        UserError: if a path is not of these forms, a file cannot be read, the two differ in their
            classes, or there is nothing to evaluate on.
    """
    first, second = _read(train, "train")
    if val:
        second, _ = _read(val, "val", _names(first))
    if second is None:
        if not 0 < share < 1:
            raise UserError(
                f"{train[0]} has no photos to evaluate on: give --val, or --val-share 0.2 to keep "
                "a fifth of them."
            )
        first, second = _divide(first, share)
    if _names(first) != _names(second):
        raise UserError(
            f"The classes to train on are {_names(first)}, those to evaluate on {_names(second)}: "
            "write the same into both, in one order."
        )
    return first, second


def _read(
    paths: Sequence[str], split: str, classes: Sequence[str] = ()
) -> tuple[Split, Split | None]:
    """Read a source, and its own photos to evaluate on, if it has any."""
    path = Path(paths[0]).expanduser()
    if path.suffix in (".yaml", ".yml") and len(paths) == 1:
        return _read_yolo(path, split)
    if path.suffix == ".json" and len(paths) == 2:
        if not path.is_file():
            raise UserError(f"--{split} names {path}, which is no file: correct the path.")
        read_coco(str(path))  # reports what is wrong with it
        return Split(json.loads(path.read_bytes()), paths[1], str(path)), None
    if path.is_dir() and len(paths) == 2:
        return Split(voc_to_coco(voc_files(path), classes), paths[1]), None
    if (path / "Annotations").is_dir() and len(paths) == 1:
        return _read_voc(path, split, classes)
    raise UserError(f"--{split} is {' '.join(paths)!r}: give {FORMS}.")


def _read_voc(root: Path, split: str, classes: Sequence[str]) -> tuple[Split, Split | None]:
    annotations, images = root / "Annotations", str(root / "JPEGImages")
    lists = {name: root / "ImageSets" / "Main" / f"{name}.txt" for name in ("train", "val")}
    if split != "train" or not all(path.is_file() for path in lists.values()):
        own = lists[split] if lists[split].is_file() else None
        return Split(voc_to_coco(voc_files(annotations, own), classes), images), None
    files = {name: voc_files(annotations, path) for name, path in lists.items()}
    both = voc_to_coco([*files["train"], *files["val"]], classes)  # for the classes of both
    names = [x["name"] for x in both["categories"]]
    train, val = (Split(voc_to_coco(x, names), images) for x in files.values())
    return train, val


def _read_yolo(path: Path, split: str) -> tuple[Split, Split | None]:
    yolo = read_data_yaml(path)
    if split == "val" and "val" not in yolo.splits:
        raise UserError(f"{path} names no images under 'val': write a folder or a list of files.")
    splits = [split, "val"] if split == "train" and "val" in yolo.splits else [split]
    found = [yolo_to_coco(yolo, name) for name in splits]
    first, *rest = (Split(content, _from_here(folder)) for content, folder in found)
    return first, rest[0] if rest else None


def _from_here(folder: Path) -> str:
    # A relative path is still right if the project's folder moves.
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def _names(split: Split) -> list[str]:
    return [x["name"] for x in sorted(split.content["categories"], key=lambda x: x["id"])]


def _divide(whole: Split, share: float) -> tuple[Split, Split]:
    images = list(whole.content["images"])
    if len(images) < 2:
        raise UserError("There is only one photo: give others to evaluate on by --val.")
    random.Random(0).shuffle(images)
    kept = min(max(round(share * len(images)), 1), len(images) - 1)
    train, val = (_only(whole, part) for part in (images[kept:], images[:kept]))
    return train, val


def _only(whole: Split, images: Sequence[dict[str, Any]]) -> Split:
    ids = {x["id"] for x in images}
    annotations = [x for x in whole.content.get("annotations", []) if x["image_id"] in ids]
    ordered = [x for x in whole.content["images"] if x["id"] in ids]
    return Split(whole.content | {"images": ordered, "annotations": annotations}, whole.images)
