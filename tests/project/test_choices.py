"""Three data sets of unlike size, and what an expert would choose for them."""

import dataclasses

import pytest

from dpk_det.project.choices import choose
from dpk_det.project.measures import Measures

COCO = Measures(
    classes=[str(i) for i in range(80)],
    num_images=118_000,
    num_objects=860_000,
    short=480,
    aspect=1.5,
    sizes=(9.0, 25.0, 63.0),
    crowded=30,
    masks=True,
)
CARDS = Measures(["nine", "ten"], 296, 527, 378, 1.78, (95.0, 127.0, 145.0), 6, False)
FEW = Measures(["pen"], 20, 40, 3000, 1.33, (200.0, 400.0, 600.0), 4, False)


def test_coco_gets_detectron2s_sizes_and_schedule():
    found = choose(COCO, 8)
    assert (found.short, found.long, found.images) == (800, 1333, 16)
    assert found.shorts == [640, 672, 704, 736, 768, 800]
    assert found.epochs == 12 and 88_000 <= found.steps <= 90_000 and found.warmup == 1000
    assert found.small_anchors  # 9 pixels become 15
    assert choose(dataclasses.replace(COCO, sizes=(12.0, 25.0, 63.0)), 8).small_anchors is False


def test_photos_of_large_objects_stay_small():
    found = choose(CARDS, 1)
    assert (found.short, found.long, found.images) == (320, 576, 4)
    assert not found.small_anchors
    assert found.epochs == 98 and found.steps == round(98 * 296 / 4)


def test_few_large_photos():
    found = choose(FEW, 0)
    assert found.short == 704 and found.images == 4  # so that 400 pixels become 94
    assert found.epochs == 251 and found.steps == 1255 and found.warmup == 125


def test_a_few_photos_get_a_least_number_of_steps():
    found = choose(dataclasses.replace(FEW, num_images=1), 0)
    assert (found.steps, found.epochs) == (300, 1200)
    assert found.reasons["steps"] == "at least 300, however few the photos"


@pytest.mark.parametrize(
    ("gpus", "images"), [(0, 4), (1, 4), (2, 8), (4, 16), (5, 15), (6, 12), (8, 16), (32, 32)]
)
def test_images_of_a_step_follow_the_gpus(gpus, images):
    found = choose(CARDS, gpus)
    assert found.images == images
    seen = found.steps * found.images
    assert seen == pytest.approx(found.epochs * CARDS.num_images, rel=0.01)


def test_small_photos_are_enlarged_twice_at_most():
    found = choose(dataclasses.replace(COCO, short=96), 1)
    assert found.short == 192 and "enlarged by 2" in found.reasons["short"]


def test_detections_are_as_many_as_objects():
    assert choose(COCO, 1).detections == 100
    assert choose(dataclasses.replace(COCO, crowded=250), 1).detections == 250


def test_reasons_are_true_of_coco_itself():
    reasons = choose(COCO, 8).reasons
    assert reasons["rate"] == "the usual rate is for 16 images"
    assert reasons["images"] == "2 for each GPU; Detectron2's schedules have 16 in all"
    assert reasons["steps"] == "12 epochs of 118,000 photos"
    assert choose(COCO, 2).reasons["images"] == "4 for each GPU"
