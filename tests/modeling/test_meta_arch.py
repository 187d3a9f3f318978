"""Distilling architectures: the plain ones in all that is kept, more in nothing but training."""

import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.utils.events import EventStorage

import dpk_det
from dpk_det.architectures import distilling_names, plain_architecture, plain_name
from dpk_det.deploy.export import export_student
from dpk_det.engine.train import parse_args, setup
from dpk_det.errors import UserError


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
    # Detectron2 logs what did not match, and returns it from this method alone
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


@pytest.mark.parametrize("name", distilling_names())
def test_every_distilling_architecture_and_its_plain_one_are_registered(name):
    assert name in META_ARCH_REGISTRY
    assert plain_name(name) in META_ARCH_REGISTRY


def test_the_plain_architecture_of_a_config_needs_no_teacher(tiny):
    cfg = tiny.cfg("dpk", "DISTILL.TEACHER.CONFIG_FILE", "gone.yaml")
    cfg.freeze()
    plain = plain_architecture(cfg)
    assert not hasattr(build_model(plain), "distiller")
    assert cfg.MODEL.META_ARCHITECTURE == "DistillRCNN"  # a copy was changed
    cfg = tiny.cfg("plain")
    assert plain_architecture(cfg) == cfg


DENSE = {
    "DistillRetinaNet": ["MODEL.RETINANET.NUM_CLASSES", 2, "MODEL.RETINANET.NUM_CONVS", 1],
    "DistillFCOS": ["MODEL.FCOS.NUM_CLASSES", 2, "MODEL.FCOS.NUM_CONVS", 1],
}
DENSE["DistillRetinaNet"] += ["MODEL.RETINANET.IN_FEATURES", "['p2', 'p3', 'p4']"]
DENSE["DistillRetinaNet"] += ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
DENSE["DistillFCOS"] += ["MODEL.FCOS.IN_FEATURES", "['p2', 'p3', 'p4']"]
DENSE["DistillFCOS"] += ["MODEL.FCOS.SCORE_THRESH_TEST", 0.0]


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_student_of_an_rcnn_is_trained_evaluated_and_exported(
    tiny, tmp_path, command, name
):
    opts = ["MODEL.META_ARCHITECTURE", name, *DENSE[name]]
    line = ["--config-file", tiny.dpk]
    command(*line, "OUTPUT_DIR", tmp_path, *opts)
    weights = tmp_path / "model_final.pth"
    more = ["OUTPUT_DIR", tmp_path / "again", "MODEL.WEIGHTS", weights]
    command(*line, "--eval-only", *more, *opts)
    file = "inference/coco_instances_results.json"
    found = json.loads((tmp_path / file).read_text())
    assert len(found) > 10
    assert found == json.loads((tmp_path / "again" / file).read_text())
    export_student(str(tiny.dpk), str(weights), str(tmp_path / "it.pth"), [str(x) for x in opts])
    plain = tiny.build("plain", *opts, "MODEL.META_ARCHITECTURE", plain_name(name))
    plain.load_state_dict(torch.load(tmp_path / "it.pth")["model"])


# ------------------------------------------------------------------ one of the user's own


class Found(GeneralizedRCNN):
    """A user's own meta-architecture."""


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is gone after it."""
    # Detectron2's registries can forget nothing
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", dict(META_ARCH_REGISTRY._obj_map))
    return META_ARCH_REGISTRY


def test_the_four_that_come_with_it():
    assert plain_name("DistillRCNN") == "GeneralizedRCNN"
    for name in ("RetinaNet", "FCOS", "PanopticFPN"):
        assert plain_name(f"Distill{name}") == name


def test_ones_own_architecture_takes_one_call(tiny, batch, registry):
    registry.register(Found)
    assert dpk_det.register_distilled("Found") == "DistillFound"
    model = tiny.build("dpk", "MODEL.META_ARCHITECTURE", "DistillFound")
    assert type(model) is Found
    assert "loss_dpk" in train_step(model, batch)
    cfg = plain_architecture(tiny.cfg("dpk", "MODEL.META_ARCHITECTURE", "DistillFound"))
    plain = build_model(cfg)
    assert type(plain) is Found and not hasattr(plain, "distiller")
    plain.load_state_dict(without_distiller(model.state_dict()))
    # the commands find it as well: of a training, and of an evaluation without the teacher
    line = ["--config-file", str(tiny.dpk)]
    own = ["MODEL.META_ARCHITECTURE", "DistillFound", "OUTPUT_DIR", "x"]
    assert setup(parse_args([*line, *own])).MODEL.META_ARCHITECTURE == "DistillFound"
    assert setup(parse_args([*line, "--eval-only", *own])).MODEL.META_ARCHITECTURE == "Found"


def test_a_name_of_ones_own(registry):
    registry.register(Found)
    assert dpk_det.register_distilled("Found", "Taught") == "Taught"
    assert "Taught" in registry and plain_name("Taught") == "Found"
    assert registry.get("Taught").__name__ == "Taught"


def test_registering_again_changes_nothing(registry):
    registry.register(Found)
    dpk_det.register_distilled("Found")
    builder = registry.get("DistillFound")
    dpk_det.register_distilled("Found")
    assert registry.get("DistillFound") is builder


def test_an_architecture_that_is_not_registered_is_an_error_that_names_the_nearest(registry):
    with pytest.raises(UserError, match="no meta-architecture named 'RetinaNett': did you mean 'R"):
        dpk_det.register_distilled("RetinaNett")
    assert "DistillRetinaNett" not in registry


@pytest.mark.parametrize("name", ["DistillRCNN", "GeneralizedRCNN"])
def test_a_name_that_is_taken_is_an_error(registry, name):
    with pytest.raises(UserError, match=f"{name} is registered already, as something else than"):
        dpk_det.register_distilled("RetinaNet", name)
    assert plain_name("GeneralizedRCNN") == "GeneralizedRCNN"


def test_an_architecture_that_distils_already_is_not_registered_again(registry):
    with pytest.raises(UserError, match="DistillRetinaNet distils already.*plain RetinaNet"):
        dpk_det.register_distilled("DistillRetinaNet")
    assert "DistillDistillRetinaNet" not in registry
