"""Datasets of images with one class each, by name.

::

    DATASETS:
      IMAGES:
        pets_train: ~/pets/train                           # one folder per class
        pets_val: $PETS/val.zip                            # the same, zipped
        tiny100: [cifar-100-python.tar.gz, train]          # CIFAR's archive, and its part
      TRAIN: ("pets_train",)
      TEST: ("pets_val",)

These names are found below ``$DETECTRON2_DATASETS``: ``cifar10_{train,test}`` and
``cifar100_{train,test}``, as archive, unpacked, or one folder per class (zipped or not), and
``imagenet_{train,val}``.
"""

import io
import os
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from dpk_det.checkpoint.arrays import load_arrays
from dpk_det.data.image_files import ImageFile, as_seen, find_problem
from dpk_det.data.root import expand
from dpk_det.errors import UserError

EVALUATOR_TYPE = "classification"
"""``evaluator_type`` in the metadata of these datasets."""

Place = tuple[str, str]
"""Path, and the part of a CIFAR archive: "train" or "test"; "" if it is not such an archive."""

_PARTS = {"train": ("data_batch_", "train"), "test": ("test_batch", "test")}
_NAMES = {"batches.meta": "label_names", "meta": "fine_label_names"}


@dataclass(eq=False, repr=False)
class ImageSet:
    """Images and the numbers of their classes.

    Args:
        classes: names of the classes.
        labels: class number of each image.
        images: (n, 3, H, W), or the files' paths.
        archive: the zip that holds these paths; "" if there is none.
    """

    classes: list[str]
    labels: list[int]
    images: Tensor | list[str]
    archive: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image, (3, H, W) uint8 RGB after EXIF rotation, and its class."""
        image = self.images[index]
        if isinstance(image, str):
            image = _decode(ImageFile(image, archive=self.archive))
        return image, self.labels[index]

    def image_files(self) -> list[ImageFile]:
        """Return the images that are files; none if they are in memory."""
        if isinstance(self.images, Tensor):
            return []
        return [ImageFile(path, archive=self.archive) for path in self.images]


def _decode(file: ImageFile) -> Tensor:
    try:
        with file.open() as stream, Image.open(io.BytesIO(stream.read())) as image:
            return pil_to_tensor(as_seen(image))
    # PIL and zipfile raise errors of many kinds, depending on the damage
    except Exception as e:
        raise UserError(find_problem(file) or str(e)) from e


@lru_cache(maxsize=8)
def read_images(path: str, part: str) -> ImageSet:
    """Read a dataset's list of images, and CIFAR's images too. The result is cached.

    Args:
        path: of a folder or zip with one folder per class, or of CIFAR's archive, unpacked or not.
        part: "train" or "test" of CIFAR's archive; otherwise "".

    Raises:
        UserError: if the path cannot be read as one of these.
    """
    try:
        if not part:
            return _read_zip(path) if zipfile.is_zipfile(path) else _read_folder(path)
        if os.path.isdir(path):
            return _read_cifar({x.name: x.read_bytes() for x in Path(path).iterdir()}, path, part)
        with tarfile.open(path) as archive:
            files = {
                PurePosixPath(member.name).name: archive.extractfile(member).read()
                for member in archive
                if member.isfile()
            }
        return _read_cifar(files, path, part)
    # damaged archives and pickles raise errors of many kinds
    except Exception as e:
        if isinstance(e, UserError):
            raise
        what = f"the {part} part of CIFAR's archive" if part else "images with a folder a class"
        reason = " ".join(str(e).split()) or repr(e)
        raise UserError(f"{path} cannot be read as {what} ({reason}): correct its path.") from e


def _read_folder(path: str) -> ImageSet:
    classes, numbers = find_classes(path)
    paths, labels = zip(*make_dataset(path, numbers, IMG_EXTENSIONS), strict=True)
    return ImageSet(classes, list(labels), list(paths))


def _read_zip(path: str) -> ImageSet:
    with zipfile.ZipFile(path) as file:
        entries = [
            (PurePosixPath(x.filename), x.is_dir())
            for x in file.infolist()
            if not x.filename.startswith("__MACOSX")
        ]
    images = [x for x, is_dir in entries if x.name.lower().endswith(IMG_EXTENSIONS) and not is_dir]
    top = _folder_of_classes(images)
    depth = len(top.parts)
    inside = [x for x in images if len(x.parts) > depth + 1]  # torchvision also ignores the others
    found = sorted((x.parts[depth], str(x.parent), x.name) for x in inside)  # its order too
    classes = sorted({class_ for class_, _, _ in found})
    if not classes:
        raise UserError(f"{path} has no folder a class, with images in it: correct its path.")
    folders = {x for x, is_dir in entries if is_dir and x != top and x.is_relative_to(top)}
    empty = sorted({x.parts[depth] for x in folders}.difference(classes))
    if empty:  # torchvision refuses empty folders too
        raise UserError(
            f"{path} has no image of class {empty[0]}: add some, or take its folder out."
        )
    numbers = {name: i for i, name in enumerate(classes)}
    labels = [numbers[class_] for class_, _, _ in found]
    return ImageSet(classes, labels, [f"{folder}/{name}" for _, folder, name in found], path)


def _folder_of_classes(images: Sequence[PurePosixPath]) -> PurePosixPath:
    """Return the folder in an archive that has one folder per class; "." if it is the archive."""
    folders = {x.parent for x in images}
    common = PurePosixPath(os.path.commonpath(folders or {""}))
    return common.parent if folders == {common} else common  # one class alone


def _read_cifar(files: dict[str, bytes], path: str, part: str) -> ImageSet:
    batches = [
        load_arrays(io.BytesIO(files[name]))
        for name in sorted(files)
        if name.startswith(_PARTS[part]) and not name.endswith(".meta")
    ]
    meta = next((name for name in _NAMES if name in files), None)
    if not batches or meta is None:
        raise UserError(f"{path} has no {part} part of CIFAR's archive in it: correct its path.")
    names = load_arrays(io.BytesIO(files[meta]))[_NAMES[meta]]
    labels = [x for b in batches for x in b.get("fine_labels", b.get("labels"))]
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    if len(labels) != len(images) or not {*labels} <= {*range(len(names))}:
        raise ValueError(f"{len(images)} images, {len(labels)} labels, {len(names)} classes")
    return ImageSet(names, labels, torch.from_numpy(images))


# ------------------------------------------------------------------ names


def register_image_datasets(cfg: CfgNode) -> None:
    """Register every entry of ``cfg.DATASETS.IMAGES``; the module's docstring shows examples.

    Relative paths start at the working directory. ``~`` and environment variables are expanded.
    No file is read, and registering the same entry again changes nothing.

    Raises:
        UserError: if an entry is neither a path nor a path and a part, or its name already
            belongs to another dataset.
    """
    for name, entry in cfg.DATASETS.get("IMAGES", {}).items():
        place = place_of(entry)
        if place is None:
            raise UserError(
                f"DATASETS.IMAGES.{name} is {entry!r}: give the path of a folder or zip, or "
                "[path/to/cifar's archive, train or test]."
            )
        if name in DatasetCatalog and MetadataCatalog.get(name).get("places") != (place,):
            raise UserError(
                f"DATASETS.IMAGES.{name} is {place[0]}, but a dataset of that name is already "
                "registered: give it another name."
            )
        _register(name, place)


def place_of(entry: Any) -> Place | None:
    """Return where an entry of ``DATASETS.IMAGES`` points to; None if the entry is not valid."""
    if isinstance(entry, str):
        return (expand(entry), "") if entry else None
    if isinstance(entry, Sequence) and len(entry) == 2 and entry[1] in [*_PARTS]:
        path, part = entry
        return (expand(path), part) if path and isinstance(path, str) else None
    return None


def register_all(root: str) -> None:
    """Register CIFAR and ImageNet below the folder of all datasets; no file is read."""
    for name, archive, folder in (
        ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python"),
    ):
        for part in _PARTS:
            official = f"{name}/{archive}", f"{name}/{folder}", archive, folder
            places = [(x, part) for x in official]
            places += [(f"{name}/{part}.zip", ""), (f"{name}/{part}", "")]
            _register(f"{name}_{part}", *((os.path.join(root, x), p) for x, p in places))
    for part in ("train", "val"):
        _register(f"imagenet_{part}", (os.path.join(root, "imagenet", part), ""))


def is_image_set(name: str) -> bool:
    """Return whether a registered dataset has images with one class each."""
    return MetadataCatalog.get(name).get("evaluator_type") == EVALUATOR_TYPE


def find_place(name: str) -> Place:
    """Return the first existing place among a dataset's possible places.

    Raises:
        UserError: if none of them exists.
    """
    places = MetadataCatalog.get(name).places
    for place in places:
        if os.path.exists(place[0]):
            return place
    remedy = (
        "set the environment variable DETECTRON2_DATASETS to the folder of all datasets, or name "
        "the place in DATASETS.IMAGES under a name of your own"
        if len(places) > 1 or name.startswith("imagenet_")
        else f"correct DATASETS.IMAGES.{name}"
    )
    looked = " nor ".join(path for path, _ in places)
    raise UserError(f"Dataset {name} is not at {looked}: {remedy}.")


def _register(name: str, *places: Place) -> None:
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: read_images(*find_place(name)))
        MetadataCatalog.get(name).set(evaluator_type=EVALUATOR_TYPE, places=places)
