"""Check that datasets, and student and teacher, give the same class the same number."""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, ListConfig, OmegaConf

from dpk_det.data.coco_json import read_classes
from dpk_det.data.image_sets import is_image_set, place_of, read_images
from dpk_det.data.model_classes import class_count_key, num_classes
from dpk_det.data.root import expand
from dpk_det.errors import UserError
from dpk_det.pairing.teacher import load_teacher_config


def class_names(name: str) -> list[str] | None:
    """Return a registered dataset's class names by number; None if they are unknown."""
    if is_image_set(name):
        return DatasetCatalog.get(name).classes
    return MetadataCatalog.get(name).get("thing_classes")


def check_class_count(cfg: CfgNode, name: str) -> None:
    """Check that the model has a dataset's number of classes, if both are known.

    Raises:
        UserError: if the numbers differ, or a classifier's dataset cannot be read.
    """
    expected, classes = num_classes(cfg), class_names(name)
    if expected is None or classes is None or len(classes) == expected:
        return
    found = len(classes)
    raise UserError(
        f"MODEL.{class_count_key(cfg)}.NUM_CLASSES is {expected} but dataset {name} has "
        f"{found} {'class' if found == 1 else 'classes'}: set it to {found}."
    )


def check_class_order(train: Sequence[str], test: Sequence[str]) -> None:
    """Compare the classes of the datasets that a model is trained and evaluated on.

    Raises:
        UserError: if a training dataset, or any dataset of a classifier, has other classes than the
            first dataset, or if an evaluation dataset gives a class another number.
    """
    named = {name: class_names(name) for name in (*train, *test)}
    named = {name: classes for name, classes in named.items() if classes}
    first = next(iter(named), None)
    for name, classes in named.items():
        own = named[first]
        if classes == own:
            continue
        misplaced, strange = _misplaced(own, classes), _strange(own, classes)
        if misplaced or name in train or is_image_set(name):
            raise UserError(
                f"Datasets {first} and {name} have not the same classes in the same order "
                f"({misplaced or strange}): make their categories alike."
            )
        logging.getLogger(__name__).warning(
            "Datasets %s and %s call their classes by different names (%s); the numbers count.",
            *(first, name, strange),
        )


def check_teachers_classes(cfg: CfgNode) -> None:
    """Compare a student's class names with its teacher's, for learning by class number.

    The teacher's names come from the first dataset in its config that can be read. Unknown names
    or unequal counts of classes are accepted here: methods that compare logits check the counts
    themselves, and classes are only inherited if the counts are equal.

    Args:
        cfg: the student's config. Its datasets must be registered.

    Raises:
        UserError: if a class has another number in the teacher, or no class has the same name.
    """
    names = (class_names(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    own, told = next(filter(None, names), None), teacher_classes(_teacher_config(cfg))
    if own is None or told is None or len(own) != len(told[1]):
        return
    name, classes = told
    what = _misplaced(own, classes)
    if not what and not {*own} & {*classes}:
        what = f"none has the same name, the first are {own[0]!r} and {classes[0]!r}"
    if what:
        raise UserError(
            f"The student's classes are not its teacher's in the same order, of dataset {name} "
            f"({what}): number the categories alike, or choose methods that compare features and "
            "DISTILL.INHERIT False."
        )
    if own != classes:
        logging.getLogger(__name__).warning(
            "Student and teacher call classes by different names (%s); the numbers count.",
            _strange(own, classes),
        )


def _misplaced(own: Sequence[str], other: Sequence[str]) -> str:
    places = {name: i for i, name in enumerate(other)}
    for i, name in enumerate(own):
        if places.get(name, i) != i:
            return f"{name!r} is number {i} of one and {places[name]} of the other"
    return ""


def _strange(own: Sequence[str], other: Sequence[str]) -> str:
    """Return the first difference between two lists, as text."""
    pairs = itertools.zip_longest(own, other)
    return next(f"number {i} is {a!r} and {b!r}" for i, (a, b) in enumerate(pairs) if a != b)


def _teacher_config(cfg: CfgNode) -> CfgNode | DictConfig:
    return load_teacher_config(cfg.DISTILL.TEACHER.CONFIG_FILE, cfg.DISTILL.TEACHER.OPTS)


def teacher_classes(teacher: CfgNode | DictConfig) -> tuple[str, list[str]] | None:
    """Return name and classes of the first dataset in a teacher's config with known classes."""
    if isinstance(teacher, DictConfig):
        keys = (f"dataloader.{split}.dataset.names" for split in ("train", "test"))
        names, files, images = [OmegaConf.select(teacher, key) for key in keys], {}, {}
    else:
        node = teacher.DATASETS
        names, files, images = (node.TRAIN, node.TEST), node.get("JSON", {}), node.get("IMAGES", {})
    for name in _flatten(names):
        try:
            classes = _read_classes(name, files, images)
        except (UserError, LookupError, TypeError):  # its data may be on another machine
            continue
        if classes:
            return name, classes
    return None


def _flatten(names: Iterable[Any]) -> list[str]:
    lists = [x if isinstance(x, list | tuple | ListConfig) else [x] for x in names]
    return [name for names in lists for name in names if isinstance(name, str)]


def _read_classes(
    name: str, files: Mapping[str, Any], images: Mapping[str, Any]
) -> list[str] | None:
    # not registered, because the student's config may give the same name to another dataset
    if name in files:
        return read_classes(expand(files[name][0]))
    if name in images:
        return read_images(*place_of(images[name])).classes
    return class_names(name) if name in DatasetCatalog else None
