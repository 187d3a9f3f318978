"""Checks of the datasets that a config names, before anything is built."""

import difflib
import os
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from dpk_det.errors import UserError

from .coco_json import read_classes
from .root import datasets_root

# Where a meta-architecture keeps its number of classes, by the end of its registered name: so that
# this holds for ours (DistillRCNN, ...) and for those of other projects.
_CLASS_COUNTS = {
    "RCNN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
    "FCOS": "FCOS",
}


def check_datasets(cfg: CfgNode) -> None:
    """Check that the model of ``cfg`` can use the datasets in its ``DATASETS.TRAIN`` and ``.TEST``.

    Every name is registered, its files are there, and it has as many classes as the model's head.
    Fast: an annotation file is read only where the class names are not known yet. Datasets that are
    drawn on demand are not drawn here; of those without ``json_file`` in their metadata only the
    name is checked.

    Raises:
        UserError: the first thing found wrong.
    """
    for name in _names(cfg):
        if name not in DatasetCatalog:
            raise _unknown(name)
        metadata = MetadataCatalog.get(name)
        if metadata.get("json_file") is None:
            continue
        if not metadata.get("drawn_on_demand", False):
            _check_files(cfg, name, metadata)
        _check_class_count(cfg, name, metadata)


def dataset_sizes(cfg: CfgNode) -> dict[str, int]:
    """Return the number of images of each dataset in ``cfg.DATASETS.TRAIN`` and ``.TEST``.

    Loads each of them, which takes seconds for COCO and draws those that are drawn on demand.
    Counts every image, those without an object too, which Detectron2 leaves out of training by
    default.
    """
    return {name: len(DatasetCatalog.get(name)) for name in _names(cfg)}


def num_classes(cfg: CfgNode) -> int | None:
    """Return the number of classes of the head of ``cfg.MODEL``; None where it is not known."""
    key = _class_count_key(cfg)
    return None if key is None else cfg.MODEL[key].NUM_CLASSES


def _names(cfg: CfgNode) -> Iterator[str]:
    """The names in TRAIN and TEST, each once."""
    return iter(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))


def _class_count_key(cfg: CfgNode) -> str | None:
    for ending, key in _CLASS_COUNTS.items():
        if cfg.MODEL.META_ARCHITECTURE.endswith(ending) and "NUM_CLASSES" in cfg.MODEL.get(key, {}):
            return key
    return None


def _unknown(name: str) -> UserError:
    near = difflib.get_close_matches(name, DatasetCatalog.list(), n=1, cutoff=0.0)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(
        f"DATASETS names the dataset '{name}', which is not registered: {hint}Correct the name, or "
        f"add DATASETS.JSON.{name}: [path/to/annotations.json, path/to/images]."
    )


def _check_files(cfg: CfgNode, name: str, metadata: Metadata) -> None:
    if name in cfg.DATASETS.get("JSON", {}):
        remedy = f"correct DATASETS.JSON.{name}"
    else:
        remedy = (
            "set the environment variable DETECTRON2_DATASETS to the folder of all datasets "
            f"(now '{datasets_root()}'), or add the files to DATASETS.JSON under a name of your own"
        )
    json_file, image_root = metadata.json_file, metadata.get("image_root")
    # An address such as https://... is fetched when the dataset is loaded.
    if "://" not in json_file and not os.path.isfile(json_file):
        raise UserError(f"The annotation file of {name}, {json_file}, does not exist: {remedy}.")
    if image_root and "://" not in image_root and not os.path.isdir(image_root):
        raise UserError(f"The image folder of {name}, {image_root}, does not exist: {remedy}.")


def _check_class_count(cfg: CfgNode, name: str, metadata: Metadata) -> None:
    expected = num_classes(cfg)
    if expected is None:
        return
    if metadata.get("thing_classes") is None:
        # What load_coco_json will find too. Kept, so that a large file is read for this only once.
        metadata.thing_classes = read_classes(metadata.json_file)
    found = len(metadata.thing_classes)
    if found != expected:
        raise UserError(
            f"MODEL.{_class_count_key(cfg)}.NUM_CLASSES is {expected} but dataset {name} has "
            f"{found} {'class' if found == 1 else 'classes'}: set it to {found}."
        )
