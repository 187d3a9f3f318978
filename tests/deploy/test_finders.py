"""Models that find: what they say of an image, and which are refused."""

import pytest
import torch
from detectron2.data.detection_utils import read_image

from dpk_det.deploy.finders import Classifying, Detecting
from dpk_det.errors import UserError

NAMES = {1: "square", 2: "disc"}


def test_annotations_have_the_models_numbers_of_classes_and_the_scores_that_count(tiny, trained):
    image = read_image(str(tiny.plain.parent / "images" / "1.png"), "BGR")

    def find(threshold):
        weights = str(trained / "model_final.pth")
        finder = Detecting(tiny.cfg("plain"), weights, NAMES, threshold)
        return list(finder.annotations(finder.find(image)))

    everything = find(0.0)
    assert {x["category_id"] for x in everything} <= {0, 1}
    assert find(None) == [x for x in everything if x["score"] >= 0.5]


def test_a_classifier_names_its_likeliest_classes_first(tiny_images, distilled_images):
    image = read_image(str(next(tiny_images.plain.parent.glob("images/disc/*.png"))), "BGR")
    weights, names = str(distilled_images / "model_final.pth"), dict(enumerate("abc"))
    finder = Classifying(tiny_images.cfg("plain"), weights, names, None)
    found = finder.find(image)
    scores = [score for _, score in found]
    assert sorted(number for number, _ in found) == [0, 1, 2]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
    assert [x["category_id"] for x in finder.annotations(found)] == [number for number, _ in found]


def test_a_model_without_instances_is_refused(tiny, tmp_path):
    opts = ["MODEL.META_ARCHITECTURE", "ProposalNetwork"]
    model, weights = tiny.build("plain", *opts), tmp_path / "rpn.pth"
    torch.save({"model": model.state_dict()}, weights)
    finder = Detecting(tiny.cfg("plain", *opts), str(weights), NAMES, None)
    with pytest.raises(UserError, match="A ProposalNetwork gives proposals, no instances"):
        finder.find(read_image(str(tiny.plain.parent / "images" / "1.png"), "BGR"))
