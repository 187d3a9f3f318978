"""Register any dataset in COCO's JSON format by config alone.

::

    DATASETS:
      JSON:
        pets_train: [~/pets/train.json, ~/pets/images]
        pets_val: [$PETS/val.json, $PETS/images]
      TRAIN: ("pets_train",)
      TEST: ("pets_val",)
"""

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from dpk_det.data.coco_format import Categories, read_coco
from dpk_det.data.root import expand
from dpk_det.errors import UserError


def register_json_datasets(cfg: CfgNode) -> None:
    """Register every entry ``name: [annotations.json, image folder]`` of ``cfg.DATASETS.JSON``.

    Relative paths start at the working directory. ``~`` and environment variables are expanded.
    No file is read. A config without ``DATASETS.JSON`` registers nothing, and registering
    the same entry again changes nothing.

    Raises:
        UserError: if an entry is not two paths, or its name belongs to another dataset.
    """
    for name, entry in cfg.DATASETS.get("JSON", {}).items():
        if not _is_pair_of_paths(entry):
            raise UserError(
                f"DATASETS.JSON.{name} is {entry!r}: "
                "give it as [path/to/annotations.json, path/to/images]."
            )
        _register(name, *map(expand, entry))


def read_classes(json_file: str) -> list[str]:
    """Return the category names of a COCO JSON file by ascending id, the order of Detectron2.

    Raises:
        UserError: as :func:`~dpk_det.data.coco_format.read_coco` does.
    """
    return list(list_categories(read_coco(json_file, Categories)).values())


def list_categories(content: Categories) -> dict[int, str]:
    """Return id -> name of the categories of a COCO JSON file's content, by ascending id."""
    return {x.id: x.name for x in sorted(content.categories, key=lambda category: category.id)}


def register_with_classes(
    name: str,
    load: Callable[[], list[dict]],
    json_file: str,
    image_root: str,
    classes: Sequence[str],
    **metadata: Any,
) -> None:
    """Register a dataset with known classes. A name that is already registered stays unchanged.

    Args:
        name: of the dataset.
        load: returns Detectron2's list of images.
        json_file: path of the annotations.
        image_root: folder of the images.
        classes: names of the categories 1, 2, ... in the JSON file.
        metadata: further entries of the metadata.
    """
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=list(classes),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(classes))},
        **metadata,
    )


def _is_pair_of_paths(entry: object) -> bool:
    return (
        isinstance(entry, Sequence)
        and not isinstance(entry, str)
        and len(entry) == 2
        and all(isinstance(path, str) and path for path in entry)
    )


def _register(name: str, json_file: str, image_root: str) -> None:
    if name not in DatasetCatalog:
        # No class names here: load_coco_json copies them from the JSON file into the metadata.
        register_coco_instances(name, {}, json_file, image_root)
        return
    metadata = MetadataCatalog.get(name)
    known = metadata.get("json_file"), metadata.get("image_root")
    if known != (json_file, image_root):
        raise UserError(
            f"DATASETS.JSON.{name} points to {json_file} and {image_root}, but a dataset of that "
            f"name is already registered with {known[0]} and {known[1]}: give it another name."
        )
