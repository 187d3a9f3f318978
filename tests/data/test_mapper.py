"""A mapper that names the image that it cannot take, from within a data loader's worker too."""

import pytest
import torch
from detectron2.data import DatasetMapper
from torch.utils.data import DataLoader

from dpk_det.data.mapper import NamingMapper
from dpk_det.errors import UserError


class Mapped(torch.utils.data.Dataset):
    def __init__(self, mapper, records):
        self.mapper, self.records = mapper, records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.mapper(self.records[index])


@pytest.fixture
def record(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    return {"file_name": str(tmp_path / "a.png"), "height": 3, "width": 4, "annotations": []}


@pytest.fixture
def mapper(cfg):
    cfg.INPUT.MIN_SIZE_TRAIN = (8,)
    return NamingMapper.from_config(cfg, is_train=True)


def test_it_is_detectron2s_where_all_is_well(tiny, cfg):
    from detectron2.data import DatasetCatalog

    tiny.cfg("plain")
    record = DatasetCatalog.get("tiny")[0]
    one, other = (
        m(record) for m in (NamingMapper.from_config(cfg, False), DatasetMapper(cfg, False))
    )
    assert torch.equal(one["image"], other["image"])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(mapper, record, workers):
    loader = DataLoader(Mapped(mapper, [record]), num_workers=workers)
    with pytest.raises(UserError) as error:
        next(iter(loader))
    assert str(error.value) == (
        f"{record['file_name']} cannot be read as an image (of no known kind): replace it or take "
        "it out."
    )


def test_an_image_of_another_size(mapper, record):
    import cv2
    import numpy as np

    cv2.imwrite(record["file_name"], np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="4 x 4 pixels where its annotations say 4 x 3"):
        mapper(record)


def test_what_the_image_is_no_cause_of_passes(record):
    import cv2
    import numpy as np

    def fail(record):
        raise ZeroDivisionError

    cv2.imwrite(record["file_name"], np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(ZeroDivisionError):
        NamingMapper(fail)(record)
