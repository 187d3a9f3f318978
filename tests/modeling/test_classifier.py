"""Classifiers: their loss and logits by hand, and that they distil like detectors."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from dpk_det.distill import Distiller
from dpk_det.errors import UserError
from dpk_det.modeling import ImageClassifier
from dpk_det.pairing.attach import attach_distiller
from dpk_det.pairing.distil import distil
from dpk_det.pairing.inherit import inherit_weights
from dpk_det.pairing.teacher import Teacher, build_teacher


@pytest.fixture
def images():
    """A batch of eight images of 32 x 32 pixels and three classes."""
    torch.manual_seed(3)
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    return {"images": images, "labels": torch.randint(3, (8,))}


class Spy(Distiller):
    """Wants logits and keeps what it is shown."""

    heads = frozenset({"image"})

    def forward(self, student, teacher, targets=None):
        self.seen = student, teacher, targets
        return {"loss_spy": sum(x.sum() for x in student.maps.values()) * 0}


def test_loss_and_logits_are_those_worked_out_by_hand(tiny_images, images):
    model = tiny_images.build("plain", "MODEL.CLASSIFIER.LOSS_WEIGHT", 0.5)
    assert isinstance(model, ImageClassifier)
    mean, std = torch.tensor([120.0, 110, 100]), torch.tensor([60.0, 55, 50])
    x = (images["images"].permute(0, 2, 3, 1) - mean) / std
    last = model.backbone(x.permute(0, 3, 1, 2))["stage3"].flatten(2)
    logits = last.mean(2) @ model.head.weight.T + model.head.bias
    picked = logits.softmax(1)[torch.arange(8), images["labels"]]
    losses = model(images)
    torch.testing.assert_close(losses, {"loss_cls": -0.5 * picked.log().mean()})
    model.eval()
    with torch.no_grad():
        out = model({"images": images["images"]})
        each = torch.cat([model({"images": image[None]}) for image in images["images"]])
    assert out.shape == (8, 3)
    torch.testing.assert_close(out, each)


def test_labels_are_smoothed(tiny_images, images):
    model = tiny_images.build("plain", "MODEL.CLASSIFIER.LABEL_SMOOTHING", 0.3).train()
    maps = model.backbone(model.preprocess_image(images).tensor)
    target = F.one_hot(images["labels"], 3) * 0.7 + 0.1
    want = -(target * model.classify(maps).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model(images)["loss_cls"], want)


def test_the_teacher_sees_the_same_images_its_own_way(tiny_images, images):
    model, spy = tiny_images.build("plain"), Spy([])
    teacher = build_teacher(tiny_images.cfg("dpk"))
    attach_distiller(model, teacher, spy)
    model.train()(images)
    student, other, targets = spy.seen
    assert targets is None
    assert student.image_sizes == other.image_sizes == [(32, 32)] * 8
    swapped = {**images, "images": images["images"][:, [2, 1, 0]]}
    alone = tiny_images.build("teacher", seed=7).eval()
    with torch.no_grad():
        maps = alone.backbone(alone.preprocess_image(swapped).tensor)
        want = alone(swapped)
    torch.testing.assert_close(other.maps, maps)
    assert other.strides == {"stage1": 1, "stage2": 2, "stage3": 4}
    torch.testing.assert_close(other.logits["image"].values, want)
    assert other.logits["image"].exclusive and student.logits["image"].exclusive
    assert torch.equal(student.logits["image"].labels, images["labels"])
    torch.testing.assert_close(
        F.cross_entropy(student.logits["image"].values, images["labels"]),
        model(images)["loss_cls"],
    )


@pytest.mark.parametrize(
    "methods",
    [["dpk"], ["fitnets"], ["reviewkd"], ["cwd"], ["pkd"], ["mgd"], ["kd"], ["dkd"], ["dpk", "kd"]],
)
def test_every_method_but_fgd_distils_classifiers(tiny_images, images, methods):
    model = tiny_images.build("dpk", "DISTILL.METHODS", methods).train()
    assert isinstance(model, ImageClassifier)
    losses = model(images)
    for method in methods:
        assert any(name.startswith(f"loss_{method}") for name in losses)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(loss.isfinite() for loss in losses.values())


def test_kd_and_dkd_are_those_of_the_logits(tiny_images, images):
    model = distil(
        tiny_images.build("plain").train(),
        build_teacher(tiny_images.cfg("dpk")),
        {"kd": {"temperature": 4.0, "weight": 0.9}, "dkd": {"alpha": 1.0, "beta": 1.0}},
    )
    losses = model(images)
    student = model.classify(model.backbone(model.preprocess_image(images).tensor))
    teacher = model.distillation.teacher.model
    with torch.no_grad():
        other = teacher({**images, "images": images["images"].flip(1)})
    p, q = (other / 4).softmax(1), (student / 4).softmax(1)
    want = 0.9 * 16 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(losses["loss_kd_image"], want)
    # of DKD only that the labels matter: its numbers are tested with the method
    swapped = {**images, "labels": (images["labels"] + 1) % 3}
    assert not torch.isclose(losses["loss_dkd_image"], model(swapped)["loss_dkd_image"])


def test_fgd_says_that_it_needs_boxes(tiny_images, images):
    model = tiny_images.build("dpk", "DISTILL.METHODS", ["fgd"]).train()
    with pytest.raises(UserError, match="FGD tells objects by their boxes"):
        model(images)


def test_chosen_stages_learn(tiny_images, images):
    model = tiny_images.build("dpk", "DISTILL.LEVELS", ["stage2", "stage3"]).train()
    assert [level.student for level in model.distiller.methods.dpk.levels] == ["stage2", "stage3"]
    model(images)
    assert model.distiller.metrics.keys() >= {"dpk/ratio_stage2", "dpk/ratio_stage3"}


def test_detectors_and_classifiers_do_not_learn_from_one_another(tiny, tiny_images):
    teacher = Teacher(tiny.build("teacher"), "RGB", "BGR")
    with pytest.raises(UserError, match="ImageClassifier cannot learn from a GeneralizedRCNN"):
        distil(tiny_images.build("plain", "MODEL.CIFAR.NAME", "mobilenetv2"), teacher, {"dpk": {}})


def test_other_classes_cannot_be_compared(tiny_images):
    teacher = build_teacher(tiny_images.cfg("dpk"))
    model = tiny_images.build("plain", "MODEL.CLASSIFIER.NUM_CLASSES", 5)
    with pytest.raises(UserError, match="5 classes and its teacher 3"):
        distil(model, teacher, {"kd": {}})


def test_a_student_inherits_the_classifier_where_its_shape_fits(tiny_images):
    student = tiny_images.build("plain", "MODEL.CIFAR.NAME", "resnet8x4")  # 256 channels
    teacher = tiny_images.build("teacher", seed=5)  # 128
    with pytest.raises(UserError, match="takes nothing"):
        inherit_weights(student, teacher)
    wide = tiny_images.build("plain", "MODEL.CIFAR.NAME", "resnet32x4", seed=5)
    assert inherit_weights(student, wide)[0] == ["head.weight", "head.bias"]
    assert torch.equal(student.head.weight, wide.head.weight)


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet18"],
        [
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN"),
            *("MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
        ],
    ],
)
def test_detectors_backbones_classify(tiny_images, images, opts):
    cfg = tiny_images.cfg("plain", *opts, "MODEL.BACKBONE.FREEZE_AT", 0)
    model = build_model(cfg).train()
    assert sum(p.numel() for p in model.parameters()) == 11_176_512 + 3 * 513
    images["images"] = torch.randint(256, (2, 3, 64, 64))
    losses = model({**images, "labels": images["labels"][:2]})
    assert losses["loss_cls"].isfinite()
