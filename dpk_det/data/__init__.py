"""Datasets registered by name, and checks of them before training.

Importing this package registers ``shapes_{train,few_train,val}``, ``bccd_{train,val,test}``, and
for classifiers ``cifar10_{train,test}``, ``cifar100_{train,test}`` and ``imagenet_{train,val}`` in
Detectron2's catalogs. Their folder is the value of ``$DETECTRON2_DATASETS`` at import, as
for Detectron2's own datasets. Nothing is drawn and no file is read until a dataset is loaded.
"""

from dpk_det.data import bccd, image_sets, shapes
from dpk_det.data.check import categories, check_datasets, dataset_sizes
from dpk_det.data.class_names import check_teachers_classes
from dpk_det.data.coco_json import register_json_datasets
from dpk_det.data.image_loaders import (
    build_image_test_loader,
    build_image_train_loader,
    fit_for_evaluation,
)
from dpk_det.data.image_sets import register_image_datasets
from dpk_det.data.made_up import made_up_batch
from dpk_det.data.model_classes import num_classes
from dpk_det.data.root import datasets_root
from dpk_det.data.train_loader import TrainLoader, build_detection_train_loader

bccd.register_all(datasets_root())
image_sets.register_all(datasets_root())
shapes.register_all(datasets_root())

__all__ = [
    "TrainLoader",
    "build_detection_train_loader",
    "build_image_test_loader",
    "build_image_train_loader",
    "categories",
    "check_datasets",
    "check_teachers_classes",
    "dataset_sizes",
    "fit_for_evaluation",
    "made_up_batch",
    "num_classes",
    "register_image_datasets",
    "register_json_datasets",
]
