"""DistillRCNN: the plain detector in all that is kept, more in nothing but training."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.utils.events import EventStorage

from dpk_det.config import PLAIN, plain_architecture


def without_distiller(state):
    return {name: x for name, x in state.items() if not name.startswith("distiller.")}


def train_step(model, batch):
    torch.manual_seed(3)
    with EventStorage():
        return model.train()(batch)


def detect(model, batch):
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(batch)]


def test_it_is_an_instance_of_the_plain_class_with_its_weights_names(tiny):
    plain, distilling = tiny.build("plain"), tiny.build("dpk")
    assert type(distilling) is type(plain) is GeneralizedRCNN
    kept = without_distiller(distilling.state_dict())
    assert list(kept) == list(plain.state_dict())
    assert [x.shape for x in kept.values()] == [x.shape for x in plain.state_dict().values()]
    assert len(distilling.state_dict()) > len(kept)


def test_it_starts_from_the_plain_models_weights_where_the_seed_is_the_same(tiny):
    plain, distilling = tiny.build("plain", seed=4), tiny.build("dpk", seed=4)
    kept = distilling.state_dict()
    assert all(torch.equal(x, kept[name]) for name, x in plain.state_dict().items())


def test_no_tensor_of_the_teacher_belongs_to_it(tiny):
    model = tiny.build("dpk")
    teacher = model.distillation.teacher.model
    theirs = {id(x) for x in (*teacher.parameters(), *teacher.buffers(), *teacher.modules())}
    ours = {id(x) for x in (*model.parameters(), *model.buffers(), *model.modules())}
    assert theirs and not theirs & ours
    assert not any("teacher." in name for name in model.state_dict())


def test_the_plain_losses_are_those_of_the_plain_model_to_the_bit(tiny, batch):
    plain, distilling = tiny.build("plain", seed=1), tiny.build("dpk", seed=2)
    distilling.load_state_dict(plain.state_dict(), strict=False)
    expected, losses = train_step(plain, batch), train_step(distilling, batch)
    assert set(losses) - set(expected) == {"loss_dpk"}
    assert len(expected) == 4
    assert all(torch.equal(losses[name], expected[name]) for name in expected)


def test_a_trained_checkpoint_is_a_plain_detectron2_models(tiny, trained, batch):
    checkpoint = str(trained / "model_final.pth")
    distilling = tiny.build("dpk", seed=1)
    missing, unexpected = distilling.load_state_dict(torch.load(checkpoint)["model"])
    assert not missing and not unexpected

    plain = build_model(tiny.cfg("plain"))
    checkpointer = DetectionCheckpointer(plain)
    found = []
    load, checkpointer._load_model = checkpointer._load_model, lambda c: found.append(load(c))
    checkpointer.load(checkpoint)
    assert found[0].missing_keys == [] and found[0].incorrect_shapes == []
    assert all(name.startswith("distiller.") for name in found[0].unexpected_keys)

    detections = detect(distilling, batch)
    assert sum(map(len, detections)) > 10
    for ours, theirs in zip(detections, detect(plain, batch), strict=True):
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)


def test_a_checkpoint_holds_no_weight_of_the_teacher(tiny, trained):
    state = torch.load(trained / "model_final.pth")["model"]
    teacher = torch.load(tiny.weights)["model"]
    assert set(without_distiller(state)) == set(tiny.build("plain").state_dict())
    # neither by name nor by content; vectors of ones and zeros are alike everywhere
    large = [x for x in teacher.values() if x.numel() > 64]
    assert large
    assert not any(x.shape == y.shape and torch.equal(x, y) for x in large for y in state.values())


@pytest.mark.parametrize("name", PLAIN)
def test_every_distilling_architecture_and_its_plain_one_are_registered(name):
    assert name in META_ARCH_REGISTRY
    assert PLAIN[name] in META_ARCH_REGISTRY


def test_the_plain_architecture_of_a_config_needs_no_teacher(tiny):
    cfg = tiny.cfg("dpk", "DISTILL.TEACHER.CONFIG_FILE", "gone.yaml")
    cfg.freeze()
    plain = plain_architecture(cfg)
    assert not hasattr(build_model(plain), "distiller")
    assert cfg.MODEL.META_ARCHITECTURE == "DistillRCNN"  # a copy was changed
    cfg = tiny.cfg("plain")
    assert plain_architecture(cfg) == cfg
