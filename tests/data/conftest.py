"""Fixtures that keep what a test registers out of the next test."""

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
