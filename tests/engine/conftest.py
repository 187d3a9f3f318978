"""What a test registers, kept out of the next test."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def catalogs():
    """Put Detectron2's catalogs back as they were before the test."""
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    yield
    DatasetCatalog.data, MetadataCatalog.data = before
