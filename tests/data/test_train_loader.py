"""Detectors' batches: Detectron2's, but told by seed and step alone."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader as build_detectron2s
from detectron2.utils import comm

from dpk_det.data import TrainLoader, build_detection_train_loader
from dpk_det.data.train_loader import Place
from dpk_det.errors import UserError

STILL = ["INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", "(64,)"]
LIVELY = ["INPUT.MIN_SIZE_TRAIN", "(48, 56, 64)", "INPUT.CROP.ENABLED", True]
NO_GROUPS = ["DATALOADER.ASPECT_RATIO_GROUPING", False]
REPEAT = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"]
REPEAT += ["DATALOADER.REPEAT_THRESHOLD", 1.5]


def take(cfg, num, step=0, **more):
    loader = build_detection_train_loader(cfg, **more)
    loader.step = step
    return list(itertools.islice(loader, num))


def subset(cfg, ratio):
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = ratio
    return cfg


def names(batches):
    return [[x["file_name"] for x in batch] for batch in batches]


def assert_same(some, others):
    assert names(some) == names(others)
    for one, other in zip(itertools.chain(*some), itertools.chain(*others), strict=True):
        assert torch.equal(one["image"], other["image"])
        boxes = (x["instances"].gt_boxes.tensor for x in (one, other))
        assert torch.equal(*boxes)


@pytest.mark.parametrize("more", [[], NO_GROUPS, REPEAT])
def test_the_images_come_as_detectron2s_loader_gives_them(tiny, more):
    cfg = tiny.cfg("plain", *STILL, *more)
    np.random.seed(cfg.SEED)
    theirs = list(itertools.islice(build_detectron2s(cfg), 14))
    assert_same(take(cfg, 14), theirs)


@pytest.mark.parametrize("more", [[], NO_GROUPS, None, REPEAT])
def test_batches_begin_at_any_step(tiny, more):
    cfg = tiny.cfg("plain", *LIVELY, *(more or []))
    if more is None:
        cfg = subset(cfg, 0.5)
    whole = take(cfg, 12)
    for step in (1, 5, 9):
        assert_same(take(cfg, 3, step), whole[step : step + 3])


@pytest.mark.parametrize("more", [[], NO_GROUPS])
def test_neither_workers_nor_other_draws_change_a_pixel(tiny, more):
    alone = take(tiny.cfg("plain", *LIVELY, *more), 4)
    random.random(), np.random.rand(), torch.rand(7)  # as building a teacher does
    helped = take(tiny.cfg("plain", *LIVELY, *more, "DATALOADER.NUM_WORKERS", 2), 4)
    assert_same(helped, alone)


def test_loading_draws_no_random_numbers_of_the_training(tiny):
    cfg = tiny.cfg("plain", *LIVELY)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    take(cfg, 3)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_the_seed_decides_and_a_negative_one_is_drawn(tiny, monkeypatch):
    one, other = (take(tiny.cfg("plain", *LIVELY, "SEED", seed), 6) for seed in (1, 2))
    assert names(one) != names(other)
    cfg = tiny.cfg("plain", "SEED", -1)
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 77)
    assert build_detection_train_loader(cfg).place == Place(77)


def test_an_image_is_augmented_anew_each_time(tiny):
    batches = take(subset(tiny.cfg("plain", *LIVELY), 0.13), 8)  # one image again and again
    images = [x["image"] for batch in batches for x in batch]
    assert len({str(image.shape) + str(image.sum()) for image in images}) > 8


def test_processes_share_the_stream(tiny, monkeypatch):
    cfg = tiny.cfg("plain", *STILL, *NO_GROUPS)
    alone = [x for batch in names(take(cfg, 8)) for x in batch]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        batches = names(take(cfg, 8))
        assert all(len(batch) == 1 for batch in batches)
        shares.append([x for batch in batches for x in batch])
    assert [x for pair in zip(*shares, strict=True) for x in pair] == alone
    with pytest.raises(UserError, match="IMS_PER_BATCH is 3, which 2 processes cannot share"):
        build_detection_train_loader(tiny.cfg("plain", "SOLVER.IMS_PER_BATCH", 3))


def test_after_a_change_of_the_batch_the_stream_goes_on(tiny):
    before = tiny.cfg("plain", *STILL, *NO_GROUPS)
    alone = [x for batch in names(take(before, 8)) for x in batch]
    loader = build_detection_train_loader(before)
    assert loader.images_before(5) == 10
    after = build_detection_train_loader(
        tiny.cfg("plain", *STILL, *NO_GROUPS, "SOLVER.IMS_PER_BATCH", 3)
    )
    after.place, after.step = Place(loader.place.seed, 5, 10), 6
    assert after.images_before(6) == 13
    assert names([next(iter(after))])[0] == alone[13:16]


def test_groups_have_one_aspect_and_only_waiting_images_are_left_out(tiny):
    batches = take(tiny.cfg("plain", *STILL), 12)
    assert all(len({x["width"] > x["height"] for x in batch}) == 1 for batch in batches)
    seen = [name for batch in names(batches) for name in batch]
    assert all(2 <= seen.count(name) <= 4 for name in set(seen)) and len(set(seen)) == 8


def test_a_mapper_of_ones_own(tiny):
    batches = take(tiny.cfg("plain"), 2, mapper=lambda record: record["image_id"])
    assert sorted(itertools.chain(*batches)) == sorted({*itertools.chain(*batches)})


def test_an_unknown_sampler(tiny):
    cfg = tiny.cfg("plain")
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainSampler"  # as code may do, that no config's check has seen
    with pytest.raises(UserError, match="SAMPLER_TRAIN is TrainSampler: choose TrainingSampler"):
        build_detection_train_loader(cfg)


@pytest.mark.parametrize("ratio", [0.13, 0.5, 1.0])
def test_a_share_of_the_images_is_seen_and_the_seed_decides_which(tiny, ratio):
    first, again, other = (
        take(subset(tiny.cfg("plain", *STILL, *NO_GROUPS, "SEED", seed), ratio), 16)
        for seed in (1, 1, 3)
    )
    assert names(first) == names(again)
    seen, others = ({x for batch in names(some) for x in batch} for some in (first, other))
    assert len(seen) == len(others) == int(ratio * 8)
    assert (seen == others) == (ratio == 1.0)


def test_a_share_that_leaves_no_image(tiny):
    with pytest.raises(UserError, match=r"RANDOM_SUBSET_RATIO is 0\.1: of 8 images"):
        build_detection_train_loader(subset(tiny.cfg("plain"), 0.1))


def test_images_without_a_size_are_looked_at(tiny, monkeypatch):
    from detectron2.data import DatasetCatalog

    cfg = tiny.cfg("plain", *STILL)
    told = take(cfg, 4)
    records = [
        {k: v for k, v in record.items() if k not in ("width", "height")}
        for record in DatasetCatalog.get("tiny")
    ]
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: records)
    assert_same(take(cfg, 4), told)


def test_a_late_step_is_found_without_loading():
    # a twelfth of COCO's 90,000 steps of 16 images
    class NeverLoaded(torch.utils.data.Dataset):
        def __len__(self):
            return 118_000

        def __getitem__(self, index):
            assert loader.place, "before the step that was asked for"
            return index

    from detectron2.data.samplers import TrainingSampler

    groups = bytes(np.random.default_rng(0).integers(2, size=118_000, dtype=np.uint8))
    loader = TrainLoader(
        NeverLoaded(), lambda seed: TrainingSampler(118_000, seed=seed), 0, 16, groups
    )
    loader.step = 7_500
    batch = next(iter(loader))
    assert len(batch) == 16 and len({groups[i] for i in batch}) == 1
