"""Checks of a dataset of annotated images: its files, its annotations, its classes."""

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from dpk_det.data.annotations import Use, check_annotations
from dpk_det.data.class_names import check_class_count
from dpk_det.data.coco_format import Coco, read_coco
from dpk_det.data.coco_json import list_categories
from dpk_det.data.image_files import ImageFile, image_of
from dpk_det.data.model_classes import segments
from dpk_det.data.root import datasets_root
from dpk_det.errors import UserError

COCO_KEYPOINTS = 17
"""Number of keypoints that an empty ``TEST.KEYPOINT_OKS_SIGMAS`` means."""


def check_detection(cfg: CfgNode, name: str, all_images: bool = False) -> list[ImageFile]:
    """Check one dataset of ``cfg``, except its images, as :func:`.check_datasets` describes.

    Returns:
        The images that must still be opened.

    Raises:
        UserError: for the first mistake found.
    """
    metadata = MetadataCatalog.get(name)
    images: list[ImageFile] = []
    _check_stuff_count(cfg, name, metadata)
    if metadata.get("json_file") is None:
        if all_images:
            images = [image_of(x) for x in DatasetCatalog.get(name) if "file_name" in x]
        return images
    if os.path.exists(metadata.json_file) or not metadata.get("drawn_on_demand", False):
        _check_files(cfg, name, metadata)
        if is_coco(metadata):
            coco = read_coco(metadata.json_file)
            keep_classes(name, metadata, coco)
            check_class_count(cfg, name)
            check_annotations(coco, metadata.json_file, _use(cfg, name))
            root = metadata.get("image_root")
            if root and "://" not in root:
                images = [
                    ImageFile(os.path.join(root, x.file_name), (x.width, x.height))
                    for x in coco.images
                ]
    check_class_count(cfg, name)
    return images


def is_coco(metadata: Metadata) -> bool:
    """Return whether a dataset's annotations are a file in COCO's JSON format."""
    kinds = (None, "coco", "coco_panoptic_seg")
    return bool(metadata.get("json_file")) and metadata.get("evaluator_type") in kinds


def keep_classes(name: str, metadata: Metadata, coco: Coco) -> None:
    """Put the classes that Detectron2 will find when it loads the dataset into the metadata.

    Raises:
        UserError: if the metadata already have other classes.
    """
    names = list_categories(coco)
    found = {
        "thing_classes": list(names.values()),
        "thing_dataset_id_to_contiguous_id": {id_: i for i, id_ in enumerate(names)},
    }
    for key, value in found.items():
        known = metadata.get(key)
        if known is not None and known != value:  # Detectron2 would fail a bare assertion
            raise UserError(
                f"{metadata.json_file} has the categories {_short(names)} where {name} needs "
                f"{_short(known)}: correct them, or name the file under DATASETS.JSON with a name "
                "of its own."
            )
        setattr(metadata, key, value)


def check_keypoints(cfg: CfgNode) -> None:
    """Check that keypoints can be flipped and evaluated, if the model has any.

    Raises:
        UserError: if the metadata or the config lack the values for that.
    """
    if not cfg.MODEL.KEYPOINT_ON:
        return
    for name in cfg.DATASETS.TRAIN:
        for key in ("keypoint_names", "keypoint_flip_map"):
            if MetadataCatalog.get(name).get(key) is None:
                raise UserError(
                    f"The metadata of dataset {name} has no {key}, which MODEL.KEYPOINT_ON needs: "
                    f"set it in your code, MetadataCatalog.get({name!r}).{key} = [...]."
                )
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or COCO_KEYPOINTS
    if cfg.DATASETS.TEST and sigmas != keypoints:  # otherwise only seen after training
        raise UserError(
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {keypoints} but there are {sigmas} "
            f"TEST.KEYPOINT_OKS_SIGMAS (COCO's {COCO_KEYPOINTS} where none are given): give one "
            "for each keypoint."
        )


# ------------------------------------------------------------------ files and classes


def _short(names: object) -> str:
    text = str(names)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _check_files(cfg: CfgNode, name: str, metadata: Metadata) -> None:
    if name in cfg.DATASETS.get("JSON", {}):
        remedy = f"correct DATASETS.JSON.{name}"
    else:
        remedy = (
            "set the environment variable DETECTRON2_DATASETS to the folder of all datasets "
            f"(now '{datasets_root()}'), or add the files to DATASETS.JSON under a name of your own"
        )
    json_file = metadata.json_file
    # An address such as https://... is only fetched when it is read.
    if "://" not in json_file and not os.path.isfile(json_file):
        raise UserError(f"The annotation file of {name}, {json_file}, does not exist: {remedy}.")
    for kind, key in (("image", "image_root"), ("segmentation", "sem_seg_root")):
        folder = metadata.get(key)
        if folder and "://" not in folder and not os.path.isdir(folder):
            raise UserError(f"The {kind} folder of {name}, {folder}, does not exist: {remedy}.")


def _check_stuff_count(cfg: CfgNode, name: str, metadata: Metadata) -> None:
    classes = metadata.get("stuff_classes")
    if classes is None or not segments(cfg):
        return
    expected = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(classes) != expected:
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {expected} but dataset {name} has {len(classes)} "
            f"classes of pixels: set it to {len(classes)}."
        )


def _use(cfg: CfgNode, name: str) -> Use:
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else None
    return Use(
        trained=name in cfg.DATASETS.TRAIN,
        evaluated=name in cfg.DATASETS.TEST,
        masks=cfg.MODEL.MASK_ON,
        polygons=cfg.INPUT.MASK_FORMAT == "polygon",
        keypoints=keypoints,
        keeps_empty=not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
    )
