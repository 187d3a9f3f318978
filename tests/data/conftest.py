"""What is registered, kept out of the next test; a config and a COCO JSON file's content."""

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

import dpk_det.data  # noqa: F401  (registers the datasets)


@pytest.fixture(autouse=True)
def catalogs():
    """Put Detectron2's catalogs back as they were before the test."""
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    yield
    DatasetCatalog.data, MetadataCatalog.data = before


@pytest.fixture
def cfg() -> CfgNode:
    """Detectron2's default config with the node for datasets of one's own, on the CPU."""
    cfg = get_cfg()
    cfg.DATASETS.JSON = CfgNode(new_allowed=True)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.fixture
def content():
    """Two images of 40 x 30 with a box each."""
    box = {"bbox": [5, 6, 10.5, 12], "area": 126, "iscrowd": 0}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in (1, 2)],
        "annotations": [{"id": i, "image_id": i, "category_id": i, **box} for i in (1, 2)],
        "categories": [{"id": i, "name": f"pet{i}"} for i in (1, 2)],
    }
