"""Making a built model distil, and letting it go again."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from dpk_det.attach import attach_distiller, attach_from_config
from dpk_det.distill import DPK, Distiller
from dpk_det.errors import UserError
from dpk_det.pairing import pair_levels
from dpk_det.teacher import build_teacher


@pytest.fixture
def parties(tiny):
    """A plain model, a teacher, and a distiller for the two."""
    model, teacher = tiny.build("plain"), build_teacher(tiny.cfg("dpk"))
    levels = pair_levels(model.backbone.output_shape(), teacher.model.backbone.output_shape())
    return model, teacher, DPK(levels, dim=16, heads=2, token_stride=16)


def detect(model, batch):
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(batch)]


def equal_detections(one, other):
    return all(
        torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        and torch.equal(a.scores, b.scores)
        and torch.equal(a.pred_classes, b.pred_classes)
        for a, b in zip(one, other, strict=True)
    )


def train_step(model, batch):
    torch.manual_seed(0)
    with EventStorage():
        return model.train()(batch)


def test_removing_restores_the_plain_model(parties, batch):
    model, teacher, distiller = parties
    keys, detections = list(model.state_dict()), detect(model, batch)
    losses = train_step(model, batch)
    hooks = len(model._forward_hooks), len(model.backbone._forward_hooks)
    assert sum(map(len, detections)) > 0

    bond = attach_distiller(model, teacher, distiller)
    assert "loss_dpk" in train_step(model, batch)
    assert len(model.state_dict()) > len(keys)
    bond.remove()

    assert list(model.state_dict()) == keys
    assert equal_detections(detect(model, batch), detections)
    again = train_step(model, batch)
    assert again.keys() == losses.keys()
    assert all(torch.equal(again[name], losses[name]) for name in losses)
    assert (len(model._forward_hooks), len(model.backbone._forward_hooks)) == hooks
    assert not hasattr(model, "distiller") and not hasattr(model, "distillation")
    attach_distiller(model, teacher, distiller)  # it is free for another
    assert "loss_dpk" in train_step(model, batch)


def test_detections_of_a_distilling_model_are_untouched(parties, batch):
    model, teacher, distiller = parties
    detections = detect(model, batch)
    attach_distiller(model, teacher, distiller)
    calls = []
    distiller.register_forward_hook(lambda *args: calls.append(args))
    assert equal_detections(detect(model, batch), detections)
    assert calls == []  # nor does it cost anything


def test_attaching_twice_is_an_error(parties):
    attach_distiller(*parties)
    with pytest.raises(UserError, match=r"This GeneralizedRCNN distils already: remove\(\)"):
        attach_distiller(*parties)


def test_a_model_without_a_backbone_is_an_error(parties):
    with pytest.raises(UserError, match="Linear has no 'backbone'"):
        attach_distiller(nn.Linear(1, 1), *parties[1:])


def test_it_works_without_an_event_storage(parties, batch):
    class Headless(nn.Module):  # Detectron2's heads want a storage themselves
        def __init__(self, detector):
            super().__init__()
            self.backbone, self.preprocess = detector.backbone, detector.preprocess_image

        def forward(self, batched_inputs):
            maps = self.backbone(self.preprocess(batched_inputs).tensor)
            return {"loss": maps["p2"].mean()}

    model = Headless(parties[0])
    attach_distiller(model, *parties[1:])
    losses = model.train()(batch)
    assert set(losses) == {"loss", "loss_dpk"}
    assert losses["loss_dpk"].requires_grad


def test_metrics_go_to_the_storage_unsmoothed(parties, batch):
    model, _, distiller = parties
    attach_distiller(*parties)
    with EventStorage(7) as storage:
        model.train()(batch)
        logged = storage.latest()
    expected = {f"dpk/{what}_p{i}" for what in ("ratio", "cka", "loss") for i in (2, 3, 4)}
    assert {name for name in logged if name.startswith("dpk/")} == expected
    for name in expected:
        assert logged[name] == (distiller.metrics[name].item(), 7)
        assert storage.smoothing_hints()[name] is False


def test_the_distiller_sees_the_maps_the_heads_see_and_the_sizes_before_padding(parties, batch):
    class Spy(Distiller):
        def forward(self, student, teacher, targets=None):
            self.seen = student, teacher, targets
            return {"loss_spy": student.maps["p2"].sum() * 0}

    model, teacher, _ = parties
    spy = Spy([])
    attach_distiller(model, teacher, spy)
    maps = []
    model.proposal_generator.register_forward_pre_hook(lambda _, args: maps.append(args[1]))
    losses = train_step(model, batch)
    student, teacher_sees, targets = spy.seen
    assert student.maps is maps[0]
    assert student.strides == {"p2": 4, "p3": 8, "p4": 16}
    assert student.image_sizes == [(64, 64), (64, 96)]
    assert set(teacher_sees.maps) == {"p2", "p3", "p4", "p5", "p6"}
    assert targets is batch
    assert "loss_spy" in losses and "loss_rpn_cls" in losses


def test_nothing_of_a_step_is_kept(parties, batch):
    # a kept map would hold the whole graph, and its memory, until the next step
    bond = attach_distiller(*parties)
    train_step(parties[0], batch)
    assert bond._maps is None
    detect(parties[0], batch)
    assert bond._maps is None


def test_every_weight_of_student_and_distiller_has_a_gradient(parties, batch):
    # DistributedDataParallel waits for each
    model, _, _ = parties
    attach_distiller(*parties)
    sum(train_step(model, batch).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # the distilling loss reaches the student's trunk
    model.zero_grad()
    train_step(model, batch)["loss_dpk"].backward()
    assert model.backbone.bottom_up.stem.conv1.weight.grad.abs().max() > 0


def test_attach_from_config_does_what_the_config_says_and_returns_the_model(tiny):
    cfg = tiny.cfg("dpk", "DISTILL.LEVELS", "['p3', 'p4']", "DISTILL.DPK.WEIGHT", "2.5")
    model = tiny.build("plain")
    assert attach_from_config(model, cfg) is model
    method = model.distiller.methods["dpk"]
    assert [level.student for level in method.levels] == ["p3", "p4"]
    assert method.weight == 2.5


def test_an_unknown_method_is_answered_with_the_nearest(tiny):
    cfg = tiny.cfg("dpk", "DISTILL.METHODS", "['DPK']")
    with pytest.raises(UserError, match="no distiller named 'DPK': did you mean 'dpk'"):
        attach_from_config(tiny.build("plain"), cfg)


def test_the_distiller_goes_where_the_model_is(parties):
    model, teacher, distiller = parties
    attach_distiller(model.to("meta"), teacher, distiller)
    assert {x.device.type for x in distiller.state_dict().values()} == {"meta"}


def test_a_look_without_gradients_distils_nothing(parties, batch):
    model, teacher, distiller = parties
    attach_distiller(model, teacher, distiller)
    with torch.no_grad():
        assert "loss_dpk" not in train_step(model, batch)
    assert not distiller.cka.terms.any()


def test_the_batch_may_be_given_by_its_name(parties, batch):
    model, teacher, distiller = parties
    attach_distiller(model, teacher, distiller)
    torch.manual_seed(0)
    with EventStorage():
        by_name = model.train()(batched_inputs=batch)
    assert by_name.keys() == train_step(model, batch).keys()
