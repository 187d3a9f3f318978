"""Checks of a dataset of images with a class each: its place, its classes, its images."""

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image

from dpk_det.data.image_files import check_image_files
from dpk_det.data.model_classes import num_classes
from dpk_det.errors import UserError


def check_classification(
    cfg: CfgNode, name: str, all_images: bool = False, decode: bool = False
) -> None:
    """Check one dataset that ``cfg`` names, as :func:`~dpk_det.data.check_datasets` says.

    Args:
        cfg, all_images, decode: as there. name: registered.

    Raises:
        UserError: the first thing found wrong.
    """
    classes, first = image_classes(cfg, name), [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST][0]
    others = DatasetCatalog.get(first).classes
    if classes != others:
        strange = sorted({*classes} ^ {*others})
        raise UserError(
            f"Datasets {first} and {name} have not the same classes in the same order"
            f"{f' ({strange[0]} is in one of them)' if strange else ''}: make them alike."
        )
    if all_images:
        check_image_files(DatasetCatalog.get(name).image_files(), name, decode, _fits(cfg))


def image_classes(cfg: CfgNode, name: str) -> list[str]:
    """The classes of a dataset, as many as the model has.

    Raises:
        UserError: when it has another number, or the dataset cannot be read.
    """
    classes, expected = DatasetCatalog.get(name).classes, num_classes(cfg)
    if len(classes) != expected:
        raise UserError(
            f"MODEL.CLASSIFIER.NUM_CLASSES is {expected} but dataset {name} has {len(classes)} "
            f"classes: set it to {len(classes)}."
        )
    return classes


def _fits(cfg: CfgNode):
    node = cfg.INPUT.IMAGES
    shorter = node.SIZE if node.IN_MEMORY else node.RESIZE_TEST

    def fits(width: int, height: int) -> bool:
        # the whole image is resized before its middle is cut out
        pixels = shorter * shorter * max(width, height) / min(width, height)
        return pixels <= 2 * Image.MAX_IMAGE_PIXELS

    return fits
