"""Files of proposals are read as Detectron2 reads them, or refused in a sentence."""

import json
import pickle

import numpy as np
import pytest

from dpk_det.data.proposals import check_proposals
from dpk_det.errors import UserError


@pytest.fixture
def loading(cfg):
    cfg.MODEL.LOAD_PROPOSALS = True
    return cfg


def test_a_training_and_an_evaluation_take_them(tiny, tmp_path, command):
    images = json.loads((tiny.plain.parent / "images.json").read_text())["images"]
    boxes = np.array([[1, 1, 20, 20], [4, 4, 30, 30], [2, 8, 12, 30]], np.float32)
    content = {
        "ids": [x["id"] for x in images],
        "boxes": [boxes] * len(images),
        "objectness_logits": [np.array([1, 3, 2], np.float32)] * len(images),
        "bbox_mode": 0,
    }
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps(content))
    opts = ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", True]
    for which in ("TRAIN", "TEST"):
        opts += [f"DATASETS.PROPOSAL_FILES_{which}", f"('{path}',)"]
    argv = ["--config-file", tiny.plain, "OUTPUT_DIR", tmp_path / "out", "SOLVER.MAX_ITER", 1]
    command(*argv, *opts)
    assert "bbox" in json.loads((tmp_path / "out" / "results.json").read_text())["results"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"\x80\x04\x95", "pickle data was truncated"),
        (pickle.dumps([1]), "are a list: give a file with a dict of ids"),
    ],
)
def test_a_file_that_is_none_is_told(loading, tmp_path, content, message):
    if content is not None:
        (tmp_path / "p.pkl").write_bytes(content)
    loading.DATASETS.PROPOSAL_FILES_TEST = (str(tmp_path / "p.pkl"),)
    with pytest.raises(UserError, match=message):
        check_proposals(loading)
    loading.MODEL.LOAD_PROPOSALS = False  # then nobody reads it
    check_proposals(loading)
