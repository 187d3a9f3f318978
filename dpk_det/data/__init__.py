"""Datasets registered by name, and the checks of them that come before training.

Importing this package registers ``shapes_{train,val}`` and ``bccd_{train,val,test}`` in
Detectron2's catalogs, below ``$DETECTRON2_DATASETS`` as it is at that moment, just as Detectron2
does with its own datasets. Nothing is drawn and no file is read until a dataset is loaded.
"""

from . import bccd, shapes
from .check import categories, check_datasets, dataset_sizes, num_classes
from .coco_json import register_json_datasets
from .made_up import made_up_batch
from .root import datasets_root

bccd.register_all(datasets_root())
shapes.register_all(datasets_root())

__all__ = [
    "categories",
    "check_datasets",
    "dataset_sizes",
    "made_up_batch",
    "num_classes",
    "register_json_datasets",
]
