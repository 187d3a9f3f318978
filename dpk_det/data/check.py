"""Checks of the datasets that a config names, before anything is built."""

import difflib
import os
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from dpk_det.config import PLAIN
from dpk_det.errors import UserError

from .annotations import check_annotations
from .coco_json import list_categories, read_json
from .image_sets import EVALUATOR_TYPE
from .root import datasets_root

# Where a meta-architecture keeps its number of classes, by the end of its plain name: so that this
# holds for those of other projects too.
_CLASS_COUNTS = {
    "RCNN": "ROI_HEADS",
    "PanopticFPN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
    "FCOS": "FCOS",
    "Classifier": "CLASSIFIER",
}
# That segment, too: they need the pixels' classes.
_SEGMENT = ("PanopticFPN", "SemanticSegmentor")

COCO_KEYPOINTS = 17
"""What ``TEST.KEYPOINT_OKS_SIGMAS`` left empty stands for."""


def check_datasets(cfg: CfgNode) -> None:
    """Check that the model of ``cfg`` can use the datasets in its ``DATASETS.TRAIN`` and ``.TEST``.

    Every name is registered, its files are there, its annotations are such that training and
    evaluation can read them, it has as many classes as the model's head and segmentation, and the
    model's keypoints can be evaluated. An annotation file is read only where the class names are
    not known yet. Datasets that are drawn on demand are not drawn here; of those without
    ``json_file`` in their metadata only the name and the classes of pixels are checked.

    Raises:
        UserError: the first thing found wrong.
    """
    for name in _names(cfg):
        if name not in DatasetCatalog:
            raise _unknown(cfg, name)
        metadata = MetadataCatalog.get(name)
        if _is_of_images(metadata) != classifies(cfg):
            raise _of_another_kind(cfg, name)
        if classifies(cfg):
            _check_images(cfg, name)
            continue
        _check_stuff_count(cfg, name, metadata)
        if metadata.get("json_file") is None:
            continue
        if not metadata.get("drawn_on_demand", False):
            _check_files(cfg, name, metadata)
        _check_class_count(cfg, name, metadata)
    if cfg.MODEL.KEYPOINT_ON:
        _check_keypoints(cfg)


def dataset_sizes(cfg: CfgNode) -> dict[str, int]:
    """Return the number of images of each dataset in ``cfg.DATASETS.TRAIN`` and ``.TEST``.

    Loads each of them, which takes seconds for COCO and draws those that are drawn on demand.
    Counts every image, those without an object too, which Detectron2 leaves out of training by
    default.
    """
    return {name: len(DatasetCatalog.get(name)) for name in _names(cfg)}


def classifies(cfg: CfgNode) -> bool:
    """Return whether the model of ``cfg`` is a classifier of images, no detector."""
    return _class_count_key(cfg) == "CLASSIFIER"


def num_classes(cfg: CfgNode) -> int | None:
    """Return the number of classes of the head of ``cfg.MODEL``; None where it is not known."""
    key = _class_count_key(cfg)
    return None if key is None else cfg.MODEL[key].NUM_CLASSES


def categories(cfg: CfgNode) -> dict[int, str]:
    """Return category id -> name of what the model of ``cfg`` finds, in the order of its classes.

    They are those of the first dataset in ``DATASETS.TEST``, of which a detector's images need not
    be there. Without a dataset, and of classifiers, ids are numbers from 0.

    Raises:
        UserError: the dataset is unknown, its annotations cannot be read or have another number of
            classes than the model, or there is no dataset and no telling how many classes.
    """
    if not cfg.DATASETS.TEST:
        count = num_classes(cfg)
        if count is None:
            raise UserError(
                f"There is no telling how many classes a {cfg.MODEL.META_ARCHITECTURE} has: name "
                "a dataset that has them in DATASETS.TEST."
            )
        return {i: str(i) for i in range(count)}
    name = cfg.DATASETS.TEST[0]
    if name not in DatasetCatalog:
        raise _unknown(cfg, name)
    metadata = MetadataCatalog.get(name)
    if classifies(cfg):
        if not _is_of_images(metadata):
            raise _of_another_kind(cfg, name)
        return dict(enumerate(_image_classes(cfg, name)))
    if metadata.get("thing_classes") is None:
        if metadata.get("json_file") is None:
            raise UserError(f"Dataset {name} has no class names: take it out of DATASETS.TEST.")
        _keep_classes(metadata, read_json(metadata.json_file))
    _check_class_count(cfg, name, metadata)
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    names = dict(enumerate(metadata.thing_classes))
    return {id_: names[i] for id_, i in ids.items()} if ids else names


def _names(cfg: CfgNode) -> Iterator[str]:
    """The names in TRAIN and TEST, each once."""
    return iter(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))


def _plain_name(cfg: CfgNode) -> str:
    return PLAIN.get(cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.META_ARCHITECTURE)


def _class_count_key(cfg: CfgNode) -> str | None:
    for ending, key in _CLASS_COUNTS.items():
        if _plain_name(cfg).endswith(ending) and "NUM_CLASSES" in cfg.MODEL.get(key, {}):
            return key
    return None


def _unknown(cfg: CfgNode, name: str) -> UserError:
    near = difflib.get_close_matches(name, DatasetCatalog.list(), n=1, cutoff=0.0)
    hint = f"did you mean '{near[0]}'? " if near else ""
    entry = f"JSON.{name}: [path/to/annotations.json, path/to/images]"
    if classifies(cfg):
        entry = f"IMAGES.{name}: path/to/a/folder/or/zip"
    return UserError(
        f"DATASETS names the dataset '{name}', which is not registered: {hint}Correct the name, or "
        f"add DATASETS.{entry}."
    )


def _is_of_images(metadata: Metadata) -> bool:
    return metadata.get("evaluator_type") == EVALUATOR_TYPE


def _of_another_kind(cfg: CfgNode, name: str) -> UserError:
    wanted = "of images with a class each" if classifies(cfg) else "with annotated images"
    key = "DATASETS.IMAGES" if classifies(cfg) else "DATASETS.JSON"
    return UserError(
        f"A {cfg.MODEL.META_ARCHITECTURE} has no use for dataset {name}: name one {wanted}, such "
        f"as an entry of {key}."
    )


def _image_classes(cfg: CfgNode, name: str) -> list[str]:
    classes, expected = DatasetCatalog.get(name).classes, num_classes(cfg)
    if len(classes) != expected:
        raise UserError(
            f"MODEL.CLASSIFIER.NUM_CLASSES is {expected} but dataset {name} has {len(classes)} "
            f"classes: set it to {len(classes)}."
        )
    return classes


def _check_images(cfg: CfgNode, name: str) -> None:
    classes, first = _image_classes(cfg, name), next(_names(cfg))
    others = DatasetCatalog.get(first).classes
    if classes != others:
        strange = sorted({*classes} ^ {*others})
        raise UserError(
            f"Datasets {first} and {name} have not the same classes in the same order"
            f"{f' ({strange[0]} is in one of them)' if strange else ''}: make them alike."
        )


def _check_files(cfg: CfgNode, name: str, metadata: Metadata) -> None:
    if name in cfg.DATASETS.get("JSON", {}):
        remedy = f"correct DATASETS.JSON.{name}"
    else:
        remedy = (
            "set the environment variable DETECTRON2_DATASETS to the folder of all datasets "
            f"(now '{datasets_root()}'), or add the files to DATASETS.JSON under a name of your own"
        )
    json_file = metadata.json_file
    # An address such as https://... is fetched when the dataset is loaded.
    if "://" not in json_file and not os.path.isfile(json_file):
        raise UserError(f"The annotation file of {name}, {json_file}, does not exist: {remedy}.")
    for kind, key in (("image", "image_root"), ("segmentation", "sem_seg_root")):
        folder = metadata.get(key)
        if folder and "://" not in folder and not os.path.isdir(folder):
            raise UserError(f"The {kind} folder of {name}, {folder}, does not exist: {remedy}.")


def _check_class_count(cfg: CfgNode, name: str, metadata: Metadata) -> None:
    expected = num_classes(cfg)
    if expected is None:
        return
    if metadata.get("thing_classes") is None:
        content = read_json(metadata.json_file)
        folder, evaluated = metadata.get("image_root"), name in cfg.DATASETS.TEST
        check_annotations(content, metadata.json_file, folder, evaluated, cfg.MODEL.MASK_ON)
        _keep_classes(metadata, content)
    found = len(metadata.thing_classes)
    if found != expected:
        raise UserError(
            f"MODEL.{_class_count_key(cfg)}.NUM_CLASSES is {expected} but dataset {name} has "
            f"{found} {'class' if found == 1 else 'classes'}: set it to {found}."
        )


def _check_stuff_count(cfg: CfgNode, name: str, metadata: Metadata) -> None:
    classes = metadata.get("stuff_classes")
    if classes is None or not _plain_name(cfg).endswith(_SEGMENT):
        return
    expected = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(classes) != expected:
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {expected} but dataset {name} has {len(classes)} "
            f"classes of pixels: set it to {len(classes)}."
        )


def _check_keypoints(cfg: CfgNode) -> None:
    for name in cfg.DATASETS.TRAIN:
        for key in ("keypoint_names", "keypoint_flip_map"):
            if MetadataCatalog.get(name).get(key) is None:
                raise UserError(
                    f"The metadata of dataset {name} has no {key}, which MODEL.KEYPOINT_ON needs: "
                    f"set it in your code, MetadataCatalog.get({name!r}).{key} = [...]."
                )
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or COCO_KEYPOINTS
    if cfg.DATASETS.TEST and sigmas != keypoints:  # else known only after a training
        raise UserError(
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {keypoints} but there are {sigmas} "
            f"TEST.KEYPOINT_OKS_SIGMAS (COCO's {COCO_KEYPOINTS} where none are given): give one "
            "for each keypoint."
        )


def _keep_classes(metadata: Metadata, content: dict[str, Any]) -> None:
    # What load_coco_json will find too. Kept, so that a large file is read for this only once.
    names = list_categories(content)
    metadata.thing_classes = list(names.values())
    metadata.thing_dataset_id_to_contiguous_id = {id_: i for i, id_ in enumerate(names)}
