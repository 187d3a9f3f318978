"""Check the datasets that a config names before anything is built."""

import os

import msgspec
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from dpk_det.architectures import classifies
from dpk_det.data.class_names import check_class_count, check_class_order, class_names
from dpk_det.data.coco_format import Categories, read_coco
from dpk_det.data.detection_check import check_detection, check_keypoints, is_coco, keep_classes
from dpk_det.data.image_files import check_image_files
from dpk_det.data.image_sets import is_image_set
from dpk_det.data.model_classes import num_classes
from dpk_det.data.proposals import check_proposals
from dpk_det.data.resizing import fits
from dpk_det.errors import UserError, nearest


def check_datasets(cfg: CfgNode, all_images: bool = False, decode: bool = False) -> None:
    """Check that the model of ``cfg`` can use the datasets in its ``DATASETS.TRAIN`` and ``.TEST``.

    Every name must be registered, and its files must exist. Training and evaluation must be able to
    read the annotations. Every image in them must open and have the size given there. All datasets
    must have as many classes as the model's head and segmentation, in one order. The model's
    keypoints must be suitable for evaluation. Datasets that are drawn on demand are not drawn here.
    For formats other than COCO's, only files, classes and number of classes are checked.

    Args:
        cfg: config of the job.
        all_images: also open the images of datasets in other formats, and those of classifiers,
            which have no annotations to check.
        decode: read each image whole.

    Raises:
        UserError: for the first mistake found.
    """
    names = _names(cfg)
    for name in names:
        _check_name(cfg, name)
    check_proposals(cfg)
    files = {}
    for name in names:
        if classifies(cfg):
            check_class_count(cfg, name)
            files[name] = DatasetCatalog.get(name).image_files() if all_images else []
        else:
            files[name] = check_detection(cfg, name, all_images)
    check_class_order(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    check_keypoints(cfg)
    for name in names:  # last, because it may take minutes
        check_image_files(files[name], name, decode, fits(cfg, name))


class _Counted(Categories):
    images: list[msgspec.Raw]


def dataset_sizes(cfg: CfgNode) -> dict[str, int]:
    """Return the number of images of each dataset in ``cfg.DATASETS.TRAIN`` and ``.TEST``.

    It loads datasets that are not in COCO's format, and draws those that are drawn on demand. It
    also counts images without an object, which Detectron2 leaves out of training by default.
    """
    return {name: _count(name) for name in _names(cfg)}


def _count(name: str) -> int:
    metadata = MetadataCatalog.get(name)
    if is_coco(metadata) and os.path.isfile(metadata.json_file):
        return len(read_coco(metadata.json_file, _Counted).images)
    return len(DatasetCatalog.get(name))


def categories(cfg: CfgNode) -> dict[int, str]:
    """Return category id -> name of the classes of ``cfg``'s model, in their order.

    They come from the first dataset in ``DATASETS.TEST``. A detector's images need not exist.
    Without a dataset, and for classifiers, ids count from 0; those of LVIS count from 1.

    Raises:
        UserError: if the dataset is unknown, its annotations cannot be read or have another number
            of classes than the model, or there is no dataset and the number of classes is unknown.
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
    _check_name(cfg, name)
    metadata = MetadataCatalog.get(name)
    if class_names(name) is None:
        if metadata.get("json_file") is None:
            raise UserError(f"Dataset {name} has no class names: take it out of DATASETS.TEST.")
        keep_classes(name, metadata, read_coco(metadata.json_file, Categories))
    check_class_count(cfg, name)
    names = class_names(name)
    first = 1 if metadata.get("evaluator_type") == "lvis" else 0  # as LVISEvaluator counts
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    ids = ids or {i + first: i for i in range(len(names))}
    return {id_: names[i] for id_, i in sorted(ids.items(), key=lambda pair: pair[1])}


def _names(cfg: CfgNode) -> list[str]:
    """Return the names in TRAIN and TEST, each once."""
    return list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))


def _check_name(cfg: CfgNode, name: str) -> None:
    """Check that a name is registered, and that its dataset is of the kind that the model takes."""
    key, kind = "JSON", "with annotated images"
    entry = "[path/to/annotations.json, path/to/images]"
    if classifies(cfg):
        key, kind, entry = "IMAGES", "of images with a class each", "path/to/a/folder/or/zip"
    if name not in DatasetCatalog:
        near = nearest(name, DatasetCatalog.list(), 0.0)
        hint = f"did you mean '{near}'? " if near else ""
        raise UserError(
            f"DATASETS names the dataset '{name}', which is not registered: {hint}Correct the "
            f"name, or add DATASETS.{key}.{name}: {entry}."
        )
    if is_image_set(name) != classifies(cfg):
        raise UserError(
            f"A {cfg.MODEL.META_ARCHITECTURE} has no use for dataset {name}: name one {kind}, such "
            f"as an entry of DATASETS.{key}."
        )
