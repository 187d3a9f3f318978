"""Batches of tensors: every image as often as it should be, augmented as torchvision would."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from torchvision.transforms import v2

from dpk_det.data import build_image_test_loader, build_image_train_loader, made_up_batch
from dpk_det.data.image_loaders import ImagesInMemory, shift_and_flip
from dpk_det.data.image_sets import read_images
from dpk_det.errors import UserError

RGB = ["INPUT.FORMAT", "RGB"]
PLAIN = [*RGB, "INPUT.IMAGES.PAD", 0, "INPUT.RANDOM_FLIP", "none"]
DISK = ["INPUT.IMAGES.IN_MEMORY", False, "INPUT.IMAGES.RESIZE_TEST", 40]


def take(cfg, num, seed=0, step=0):
    cfg.SEED = seed
    loader = build_image_train_loader(cfg)
    loader.step = step
    return list(itertools.islice(loader, num))


def source(tiny_images):
    images = read_images(f"{tiny_images.plain.parent}/images.zip", "")
    return {image.numpy().tobytes(): label for image, label in images}


def test_shift_and_flip_is_torchvisions_crop_and_mirror_of_each_image():
    torch.manual_seed(0)
    images = torch.randint(1, 256, (64, 3, 6, 6), dtype=torch.uint8)
    out = shift_and_flip(images, 2, True, torch.Generator().manual_seed(1))
    seen = set()
    for image, got in zip(images, out, strict=True):
        padded = v2.functional.pad(image, [2])
        options = {
            (top, left, flip): v2.functional.horizontal_flip(x) if flip else x
            for top, left in itertools.product(range(5), range(5))
            for x in [padded[:, top : top + 6, left : left + 6]]
            for flip in (False, True)
        }
        matches = [key for key, x in options.items() if torch.equal(x, got)]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) > 30  # of the 50 there are
    assert {flip for *_, flip in seen} == {False, True}
    for axis in (0, 1):
        assert {key[axis] for key in seen} == set(range(5))


def test_without_padding_and_flip_images_stay():
    images = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    assert torch.equal(shift_and_flip(images, 0, False), images)


@pytest.mark.parametrize("more", [[], DISK])
def test_an_evaluation_sees_every_image_once_in_order(tiny_images, more):
    cfg = tiny_images.cfg("plain", *RGB, *more, "INPUT.IMAGES.SIZE", 32)
    loader = build_image_test_loader(cfg, "discs_test")
    batches = list(loader)
    assert len(loader) == 5 and [len(b["labels"]) for b in batches] == [7, 7, 7, 7, 2]
    images = torch.cat([batch["images"] for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    assert labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10 and images.dtype == torch.uint8
    raw = read_images(f"{tiny_images.plain.parent}/images", "")
    for i in (0, 13, 29):
        want = raw[i][0]
        if more:
            want = v2.functional.center_crop(v2.functional.resize(want, 40, antialias=True), 32)
        assert torch.equal(images[i], want)


def test_training_goes_through_all_images_with_their_labels(tiny_images):
    cfg = tiny_images.cfg("plain", *PLAIN, "SOLVER.IMS_PER_BATCH", 10)
    labels = source(tiny_images)
    batches = take(cfg, 6)
    assert all(batch["images"].shape == (10, 3, 32, 32) for batch in batches)
    for epoch in (batches[:3], batches[3:]):
        seen = [
            (image.numpy().tobytes(), label.item())
            for batch in epoch
            for image, label in zip(batch["images"], batch["labels"], strict=True)
        ]
        assert dict(seen) == labels and len(seen) == 30
    assert not torch.equal(batches[0]["labels"], batches[3]["labels"])


@pytest.mark.parametrize("more", [[], DISK])
def test_the_seed_decides_and_other_draws_do_not_interfere(tiny_images, more):
    cfg = tiny_images.cfg("plain", *more)
    one = take(cfg, 3)
    np.random.rand(5), torch.rand(5)  # as a model that draws its weights in between
    assert_same(take(cfg, 3), one)
    assert not torch.equal(one[0]["labels"], take(cfg, 1, seed=1)[0]["labels"])


@pytest.mark.parametrize("more", [[], DISK])
def test_a_share_of_the_images_is_seen(tiny_images, more):
    sampler = ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"]
    cfg = tiny_images.cfg("plain", *PLAIN, *more, *sampler, "DATALOADER.RANDOM_SUBSET_RATIO", 0.5)
    first, again = (
        torch.cat([batch["labels"] for batch in take(cfg, 15, seed=1)]).view(8, 15)
        for _ in range(2)
    )
    assert torch.equal(first, again)
    assert len({tuple(epoch.sort().values.tolist()) for epoch in first}) == 1
    assert len({tuple(epoch.tolist()) for epoch in first}) == 8


def test_a_sampler_that_reads_boxes_is_refused(tiny_images):
    cfg = tiny_images.cfg("plain", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    with pytest.raises(UserError, match="choose TrainingSampler, or RandomSubset"):
        build_image_train_loader(cfg)


@pytest.mark.parametrize("more", [[], DISK])
def test_batches_begin_at_any_step(tiny_images, more):
    cfg = tiny_images.cfg("plain", *more)
    assert_same(take(cfg, 2, step=3), take(cfg, 5)[3:])  # four steps go through all images


def test_workers_change_nothing(tiny_images):
    cfg = tiny_images.cfg("plain", *DISK)
    alone = take(cfg, 3)
    assert_same(take(tiny_images.cfg("plain", *DISK, "DATALOADER.NUM_WORKERS", 2), 3), alone)


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one["images"], other["images"])
        assert torch.equal(one["labels"], other["labels"])


def test_processes_share_a_batch_and_draw_different_images(tiny_images, monkeypatch):
    cfg = tiny_images.cfg("plain", *PLAIN, "SOLVER.IMS_PER_BATCH", 10)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        batches = take(cfg, 3)
        assert [len(batch["labels"]) for batch in batches] == [5, 5, 5]
        seen += [image.numpy().tobytes() for batch in batches for image in batch["images"]]
    assert set(seen) == set(source(tiny_images)) and len(seen) == 30
    cfg.SOLVER.IMS_PER_BATCH = 5
    with pytest.raises(UserError, match="IMS_PER_BATCH is 5, which 2 processes cannot share"):
        build_image_train_loader(cfg)


def test_channels_come_in_the_configs_order(tiny_images):
    cfgs = (tiny_images.cfg("plain", "INPUT.FORMAT", x) for x in ("RGB", "BGR"))
    own, other = (next(iter(build_image_test_loader(cfg, "discs_test"))) for cfg in cfgs)
    assert torch.equal(own["images"], other["images"].flip(1))
    assert not torch.equal(own["images"], other["images"])


def test_images_of_another_size_are_brought_to_one(tiny_images):
    cfg = tiny_images.cfg("plain", "INPUT.IMAGES.SIZE", 16)
    assert take(cfg, 1)[0]["images"].shape == (8, 3, 16, 16)
    disk = tiny_images.cfg("plain", *DISK, "INPUT.IMAGES.SIZE", 24)
    assert take(disk, 1)[0]["images"].shape == (8, 3, 24, 24)


def test_several_datasets_are_joined(tiny_images):
    cfg = tiny_images.cfg("plain", *PLAIN, "DATASETS.TRAIN", ("discs_train", "discs_test"))
    seen = [x.item() for batch in take(cfg, 15) for x in batch["labels"]]
    assert sorted(seen[:60]) == [0] * 20 + [1] * 20 + [2] * 20


def test_a_made_up_batch_is_of_the_same_form(tiny_images):
    cfg = tiny_images.cfg("plain")
    real, made_up = take(cfg, 1)[0], made_up_batch(cfg, 8)
    assert real.keys() == made_up.keys()
    for key, value in real.items():
        assert made_up[key].shape == value.shape and made_up[key].dtype == value.dtype
    assert made_up["labels"].max() < 3


def test_nothing_is_drawn_where_nothing_is_augmented():
    images = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    batch = ImagesInMemory(images, torch.arange(4)).__getitems__([2, 0])
    assert torch.equal(batch["images"], images[[2, 0]]) and batch["labels"].tolist() == [2, 0]
