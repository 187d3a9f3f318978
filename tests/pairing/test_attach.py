"""Making a built model distil, and letting it go again."""

import copy
import io
import json
import pickle

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.utils.events import EventStorage
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dpk_det.distill import DISTILLERS, Distiller, build_distiller
from dpk_det.distill.late import Late
from dpk_det.errors import UserError
from dpk_det.pairing.attach import attach_distiller
from dpk_det.pairing.distil import attach_from_config, distil
from dpk_det.pairing.levels import pair_levels
from dpk_det.pairing.schedule import Schedule
from dpk_det.pairing.teacher import build_teacher, load_teacher


@pytest.fixture
def parties(tiny):
    """A plain model, a teacher, and a distiller for the two."""
    model, teacher = tiny.build("plain"), build_teacher(tiny.cfg("dpk"))
    levels = pair_levels(model.backbone.output_shape(), teacher.model.backbone.output_shape())
    arguments = {"dim": 16, "heads": 2, "token_stride": 16}
    return model, teacher, build_distiller({"dpk": arguments}, levels).methods["dpk"]


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


def test_a_backbone_that_names_no_maps_is_an_error(parties):
    model = nn.Module()
    model.backbone = nn.Linear(1, 1)
    told = r"Module has no 'backbone' .* with an output_shape\(\) that names them"
    with pytest.raises(UserError, match=told):
        attach_distiller(model, *parties[1:])
    with pytest.raises(UserError, match=told):
        distil(model, parties[1], {"dpk": {}})


class Headless(nn.Module):
    """A detector's backbone alone: Detectron2's heads want a storage and instances themselves."""

    def __init__(self, detector):
        super().__init__()
        self.backbone, self.preprocess = detector.backbone, detector.preprocess_image

    def forward(self, batched_inputs):
        maps = self.backbone(self.preprocess(batched_inputs).tensor)
        return {"loss": maps["p2"].mean()}


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda self, x: self.backbone(self.preprocess(x).tensor)["p2"].mean(), "returns a Tensor"),
        (lambda self, x: {"loss": torch.zeros(())}, "backbone gave nothing, in Odd"),
    ],
)
def test_a_model_that_cannot_be_distilled_is_an_error_in_its_first_step(
    parties, batch, broken, told
):
    model = type("Odd", (Headless,), {"forward": broken})(parties[0])
    attach_distiller(model, *parties[1:])
    with pytest.raises(UserError, match=f"{told}.*must call its backbone, .* dict of losses"):
        model.train()(batch)


class Spy(Distiller):
    """Keeps what it is shown."""

    def forward(self, student, teacher, targets=None):
        self.seen = student, teacher, targets
        self.saw_progress = self.progress
        return {"loss_spy": student.maps["p2"].sum() * 0}


def test_it_works_without_an_event_storage(parties, batch):
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


def test_off_the_cpu_metrics_are_logged_a_step_late(parties, batch, monkeypatch):
    class Elsewhere(Late):
        def __init__(self, x):
            super().__init__(x)
            self.here = False

    monkeypatch.setattr("dpk_det.pairing.attach.Late", Elsewhere)
    model, _, distiller = parties
    attach_distiller(*parties)
    with EventStorage() as storage:
        for _ in range(3):
            before = distiller.metrics
            model.train()(batch)
            logged = {k: v for k, (v, _) in storage.latest().items() if k in distiller.metrics}
            assert logged == {name: value.item() for name, value in before.items()}
            storage.step()


@pytest.mark.parametrize(
    "other", [(), ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]), ("INPUT.FORMAT", "RGB"), "method"]
)
def test_a_teacher_that_would_prepare_the_images_alike_is_given_the_students(tiny, batch, other):
    node = "DISTILL.TEACHER"
    twin = (f"{node}.CONFIG_FILE", tiny.plain, f"{node}.WEIGHTS", tiny.plain.with_name("twin.pth"))
    torch.save({"model": tiny.build("plain", seed=5).state_dict()}, twin[-1])
    opts = [] if other == "method" else list(other)
    model = tiny.build("plain").train()
    teacher = build_teacher(tiny.cfg("dpk", *twin, f"{node}.OPTS", opts))
    if other == "method":  # some other way to prepare them
        teacher.model.__class__ = type(
            "Own", (type(teacher.model),), {"preprocess_image": lambda self, x: own(x)}
        )
        own = super(type(teacher.model), teacher.model).preprocess_image
    levels = pair_levels(model.backbone.output_shape(), teacher.model.backbone.output_shape())
    spy = Spy(levels)
    attach_distiller(model, teacher, spy)
    seen = []
    for network in (model, teacher.model):
        network.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    train_step(model, batch)
    assert (seen[0] is seen[1]) == (not other)
    told, want = spy.seen[1], teacher(batch)  # its own way
    assert same_maps(told.maps, want.maps) and told.image_sizes == want.image_sizes


def same_maps(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_distiller_sees_the_maps_the_heads_see_and_the_sizes_before_padding(parties, batch):
    model, teacher, _ = parties
    spy = Spy([])
    attach_distiller(model, teacher, spy)
    maps = []
    model.proposal_generator.register_forward_pre_hook(lambda _, args: maps.append(args[1]))
    losses = train_step(model, batch)
    student, teacher_sees, targets = spy.seen
    assert student.maps.keys() == maps[0].keys()
    assert all(student.maps[name] is maps[0][name] for name in maps[0])
    assert student.strides == {"p2": 4, "p3": 8, "p4": 16}
    assert student.image_sizes == [(64, 64), (64, 96)]
    assert set(teacher_sees.maps) == {"p2", "p3", "p4", "p5", "p6"}
    for i, x in enumerate(batch):  # as the student sees them, in its own order
        assert torch.equal(targets.boxes[i], x["instances"].gt_boxes.tensor)
        assert torch.equal(targets.classes[i], x["instances"].gt_classes)
    assert [tuple(x.shape) for x in targets.boxes] == [(2, 4)] * 2
    assert sorted(targets.classes[0].tolist()) == [0, 1]
    assert student.logits == teacher_sees.logits == {}
    assert "loss_spy" in losses and "loss_rpn_cls" in losses


def test_nothing_of_a_step_is_kept(parties, batch, watch_tensors, kept):
    # a kept map would hold the whole graph, and its memory, until the next step
    attach_distiller(*parties)
    made = watch_tensors(parties[0].backbone)
    train_step(parties[0], batch)
    assert kept(made) == 0
    detect(parties[0], batch)
    assert kept(made) == 0


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


def broken(*args, **kwargs):
    raise MemoryError


@pytest.mark.parametrize("where", ["losses", "teacher", "distiller"])
def test_nothing_is_kept_of_a_step_that_was_broken_off(
    tiny, batch, monkeypatch, where, watch_tensors, kept
):
    model = attach_from_config(tiny.build("plain"), tiny.cfg("dpk", *LOGITS))
    bond = model.distillation
    part, name = {
        "losses": (model.roi_heads.box_predictor, "losses"),
        "teacher": (bond.teacher.model.backbone, "forward"),
        "distiller": (bond.distiller, "forward"),
    }[where]
    made = watch_tensors(model.backbone, model.proposal_generator.rpn_head, model.roi_heads)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(part, name, broken)
        train_step(model, batch)
    assert kept(made) == 0
    assert "loss_dpk" in train_step(model, batch)


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "dpk_det"]


def test_what_was_attached_is_logged_once_and_for_every_way(tiny, caplog, monkeypatch):
    caplog.set_level("INFO", "dpk_det")
    teacher = load_teacher(str(tiny.teacher), str(tiny.weights))
    distil(tiny.build("plain"), teacher, {"fitnets": {}, "kd": {}}, ["p3", "p4"])
    assert said(caplog) == [
        "GeneralizedRCNN learns by fitnets, kd from a GeneralizedRCNN teacher: p3 from p3 (stride "
        "8, 16 channels from 16); p4 from p4 (stride 16, 16 channels from 16). The distiller has 0 "
        "parameters."
    ]
    model = attach_from_config(tiny.build("plain"), tiny.cfg("dpk"))
    count = sum(p.numel() for p in model.distiller.parameters())
    assert len(said(caplog)) == 2 and f"has {count:,} parameters" in said(caplog)[1]
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    attach_from_config(tiny.build("plain"), tiny.cfg("dpk"))
    assert len(said(caplog)) == 2


def test_methods_may_learn_from_different_levels(tiny, batch, caplog):
    caplog.set_level("INFO", "dpk_det")
    opts = ("DISTILL.METHODS", "['pkd', 'fitnets', 'kd']", "DISTILL.LEVELS", "['p3']")
    cfg = tiny.cfg("dpk", *opts, "DISTILL.FITNETS.LEVELS", "['p4', 'p2']")
    model = attach_from_config(tiny.build("plain"), cfg)
    methods = model.distiller.methods
    assert [level.student for level in methods["pkd"].levels] == ["p3"]
    assert [level.student for level in methods["fitnets"].levels] == ["p2", "p4"]  # finest first
    assert "pkd: p3 from p3 (stride 8" in said(caplog)[0]
    assert "fitnets: p2 from p2 (stride 4" in said(caplog)[0]
    losses = train_step(model, batch)
    assert {"loss_pkd", "loss_fitnets", "loss_kd_roi"} <= losses.keys()
    alone = attach_from_config(
        tiny.build("plain"),
        tiny.cfg("dpk", "DISTILL.METHODS", "['fitnets']", "DISTILL.LEVELS", "['p2', 'p4']"),
    )
    assert torch.equal(train_step(alone, batch)["loss_fitnets"], losses["loss_fitnets"])


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("['p9']", r"^DISTILL\.PKD\.LEVELS names 'p9', which the student lacks: choose from p2"),
        ("['p3', 'p3']", r"^DISTILL\.PKD\.LEVELS names p3 twice"),
    ],
)
def test_levels_of_a_method_that_do_not_pair_are_refused_by_their_key(tiny, levels, message):
    cfg = tiny.cfg("dpk", "DISTILL.METHODS", "['pkd']", "DISTILL.PKD.LEVELS", levels)
    with pytest.raises(UserError, match=message):
        attach_from_config(tiny.build("plain"), cfg)


# ------------------------------------------------------------------ copies


LOGITS = ("DISTILL.METHODS", "['dpk', 'kd', 'dkd']", "DISTILL.KD.RPN_WEIGHT", 0.5)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def assert_equal_steps(one, other, batch):
    losses, others = train_step(one, batch), train_step(other, batch)
    assert {"loss_dpk", "loss_kd_roi", "loss_kd_rpn", "loss_dkd_roi"} <= losses.keys()
    assert losses.keys() == others.keys()
    assert all(torch.equal(losses[name], others[name]) for name in losses)


def saved_and_loaded(model):
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    ("duplicate", "opts"),
    [
        (copy.deepcopy, ()),
        (lambda x: pickle.loads(pickle.dumps(x)), ()),
        (saved_and_loaded, ()),
        (saved_and_loaded, ("DISTILL.TEACHER.CHANNELS_LAST", True)),
    ],
    ids=["copy", "pickle", "file", "channels_last"],
)
def test_a_copy_distils_by_itself(tiny, batch, duplicate, opts):
    model = attach_from_config(tiny.build("plain"), tiny.cfg("dpk", *LOGITS, *opts))
    train_step(model, batch)  # so that there are curves and a running CKA to copy
    bond, twin = model.distillation, duplicate(model)
    assert twin.distillation.model is twin and twin.distillation.distiller is twin.distiller
    theirs = {id(x) for x in (*twin.parameters(), *twin.buffers())}
    assert not theirs & {id(x) for x in (*model.parameters(), *model.buffers())}
    assert_equal_steps(model, twin, batch)
    # a step of the copy leaves the original as it was
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.zero_grad()
    metrics = dict(bond.distiller.metrics)
    sum(train_step(twin, batch).values()).backward()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert set(gradients(model).values()) == {None} and None not in gradients(twin).values()
    assert bond.distiller.metrics == metrics
    # and to take it off the copy leaves the original distilling
    twin.distillation.remove()
    assert "loss_dpk" not in train_step(twin, batch)
    assert list(twin.state_dict()) == list(tiny.build("plain").state_dict())
    assert "loss_dpk" in train_step(model, batch)


def test_copies_share_the_teacher_which_nothing_changes(tiny, batch, watch_tensors):
    model = attach_from_config(tiny.build("plain"), tiny.cfg("dpk", *LOGITS))
    twin = copy.deepcopy(model)
    assert twin.distillation.teacher is model.distillation.teacher
    heads = model.distillation.teacher.model
    made = watch_tensors(heads.roi_heads.box_predictor, heads.proposal_generator.rpn_head)
    own = watch_tensors(model.roi_heads.box_predictor, model.proposal_generator.rpn_head)
    train_step(twin, batch)
    assert len(made) > 2 and not own  # the one teacher's heads were asked, the copy's own watched


def test_a_model_whose_step_was_broken_off_can_be_copied(tiny, batch):
    model = attach_from_config(tiny.build("plain"), tiny.cfg("dpk", *LOGITS))
    # a graph, which cannot be copied, is left by who runs a part of the model alone
    maps = model.train().backbone(model.preprocess_image(batch).tensor)
    assert maps["p3"].requires_grad
    assert_equal_steps(copy.deepcopy(model), model, batch)


def test_a_moving_average_is_evaluated_as_any_model(tiny, batch):
    model = attach_from_config(tiny.build("plain"), tiny.cfg("dpk", *LOGITS))
    average = AveragedModel(model)  # by deepcopy
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
    average.update_parameters(model)
    average.update_parameters(model)
    plain = tiny.build("plain")
    state = average.module.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    assert equal_detections(detect(average, batch), detect(plain, batch))
    assert sum(map(len, detect(plain, batch))) > 0


# ------------------------------------------------------------------ targets and progress


@pytest.mark.parametrize("which", [(), (0,), (1,)])
def test_a_batch_that_lacks_instances_has_no_targets(parties, batch, which):
    spy = Spy([])
    model = Headless(parties[0])
    attach_distiller(model, parties[1], spy)
    batch = [x if i in which else {"image": x["image"]} for i, x in enumerate(batch)]
    model.train()(batch)
    assert spy.seen[2] is None


def test_an_image_without_objects_has_targets_without_boxes(parties, batch):
    spy = Spy([])
    model = Headless(parties[0])
    attach_distiller(model, parties[1], spy)
    batch[1]["instances"] = batch[1]["instances"][:0]
    model.train()(batch)
    assert [len(x) for x in spy.seen[2].boxes] == [2, 0] == [len(x) for x in spy.seen[2].classes]


def test_a_method_of_boxes_says_what_it_lacks(parties, batch):
    model, teacher, distiller = parties
    model = Headless(model)
    attach_distiller(model, teacher, build_distiller({"fgd": {}}, distiller.levels))
    with pytest.raises(UserError, match="FGD tells objects by their boxes"):
        model.train()([{"image": x["image"]} for x in batch])


def test_progress_is_the_share_of_steps_that_are_done(parties, batch):
    model, teacher, distiller = parties
    combined = build_distiller(
        {"dpk": {"ratio": "linear", "dim": 16, "heads": 2, "token_stride": 16}}, distiller.levels
    )
    attach_distiller(model, teacher, combined, max_iter=40)
    for iteration in (0, 10, 30, 39, 60):  # the last: of a loop that goes on
        with EventStorage(iteration) as storage:
            model.train()(batch)
            ratio = storage.latest()["dpk/ratio_p2"][0]
        done = min(iteration / 40, 1)
        assert combined.progress == done and ratio == pytest.approx(1 - done)


@pytest.mark.parametrize("max_iter", [None, 40])
def test_progress_is_the_callers_where_nobody_counts_steps(parties, batch, max_iter):
    spy = Spy([])
    model = Headless(parties[0])
    attach_distiller(model, parties[1], spy, max_iter=max_iter)
    spy.progress = 0.3
    model.train()(batch)  # no event storage
    assert spy.saw_progress == 0.3
    if max_iter is None:
        with EventStorage(5):
            model(batch)
        assert spy.saw_progress == 0.3


def test_the_config_tells_how_long_the_training_is(tiny):
    cfg = tiny.cfg("dpk", "SOLVER.MAX_ITER", 77, "DISTILL.WARMUP_ITERS", 9)
    model = attach_from_config(tiny.build("plain"), cfg)
    assert (
        model.distillation.schedule.max_iter == 77 and model.distillation.schedule.warmup_iters == 9
    )


class One(Distiller):
    """Two losses of one and two."""

    def forward(self, student, teacher, targets=None):
        one = student.maps["p2"].mean() * 0 + 1
        return {"loss_one": one, "loss_two": 2 * one}


def test_losses_of_distillation_alone_warm_up(parties, batch):
    model = Headless(parties[0])
    own = model.train()(batch)["loss"]
    bond = attach_distiller(model, parties[1], One([]), warmup_iters=4)
    # what the literature gives the n-th of N: n / N, and the whole from then on
    for iteration, share in ((0, 0.25), (1, 0.5), (2, 0.75), (3, 1), (4, 1), (1000, 1)):
        with EventStorage(iteration):
            losses = model(batch)
        assert (losses["loss_one"].item(), losses["loss_two"].item()) == (share, 2 * share)
        torch.testing.assert_close(losses["loss"], own)
    losses["loss_one"].backward()  # it still is a loss
    with pytest.raises(UserError, match="WARMUP_ITERS.* counts steps by .* event storage"):
        model(batch)
    bond.schedule = Schedule()
    assert model(batch)["loss_one"].item() == 1


# ------------------------------------------------------------------ several methods


def test_methods_side_by_side_from_the_config(tiny, batch):
    cfg = tiny.cfg("dpk", "DISTILL.METHODS", "['dpk', 'fgd']", "DISTILL.FGD.GAMMA", "0.5")
    model = attach_from_config(tiny.build("plain"), cfg)
    assert list(model.distiller.methods) == ["dpk", "fgd"]
    assert model.distiller.methods["fgd"].gamma == 0.5
    losses = train_step(model, batch)
    ours = {name for name in losses if name.startswith(("loss_dpk", "loss_fgd"))}
    assert ours == {"loss_dpk", "loss_fgd_focal", "loss_fgd_attention", "loss_fgd_global"}
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", sorted(set(DISTILLERS) - {"dpk"}))
def test_every_rival_trains_a_detector(tiny, batch, name):
    cfg = tiny.cfg("dpk", "DISTILL.METHODS", [name], "DISTILL.REVIEWKD.MID", 8)
    model = attach_from_config(tiny.build("plain"), cfg)
    losses = train_step(model, batch)
    ours = [loss for key, loss in losses.items() if key.startswith(f"loss_{name}")]
    assert ours and all(loss.isfinite() and loss > 0 for loss in ours)
    sum(ours).backward()
    assert model.backbone.bottom_up.stem.conv1.weight.grad.abs().max() > 0
    keys = {key for key, _ in model.named_parameters() if key.startswith("distiller.")}
    assert all(key.startswith(f"distiller.methods.{name}.") for key in keys)


def test_training_with_several_methods_by_the_command_stops_and_resumes(tiny, tmp_path, command):
    opts = ("--config-file", tiny.dpk, "DISTILL.METHODS", "['dpk', 'fgd', 'kd']")
    opts += ("DISTILL.DPK.RATIO", "linear", "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 4)
    opts += ("DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", 2)
    command(*opts)
    for name in ("model_0000003.pth", "model_final.pth"):
        (tmp_path / name).unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    before = torch.load(tmp_path / "model_0000001.pth", weights_only=False)
    assert before["iteration"] == 1
    (tmp_path / "metrics.json").unlink()
    command(*opts[:2], "--resume", *opts[2:])
    after = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert {"loss_dpk", "loss_fgd_focal", "loss_kd_roi", "loss_rpn_cls"} <= set(lines[-1])
    assert lines[-1]["iteration"] == 3 and lines[-1]["dpk/ratio_p2"] == pytest.approx(1 - 3 / 4)
    learnt = [key for key in after if key.startswith("distiller.methods.")]
    assert {key.split(".")[2] for key in learnt} == {"dpk", "fgd"}  # KD has nothing to learn
    assert any(not torch.equal(after[key], before["model"][key]) for key in learnt)


class Taken(Distiller):
    """A loss whose name the model has."""

    def forward(self, student, teacher, targets=None):
        return {"loss": student.maps["p2"].sum()}


def test_a_loss_is_never_replaced_by_another_of_its_name(parties, batch):
    model = Headless(parties[0])
    attach_distiller(model, parties[1], Taken([]))
    with pytest.raises(UserError, match="Two losses are named 'loss', of two methods or of a meth"):
        model.train()(batch)


# ------------------------------------------------------------------ without a config


def test_distil_is_attach_from_config_without_a_config(tiny, batch):
    cfg = tiny.cfg("dpk", "DISTILL.LEVELS", "['p3', 'p4']")
    expected = attach_from_config(tiny.build("plain"), cfg)
    model = tiny.build("plain")
    teacher = load_teacher(str(tiny.teacher), str(tiny.weights))
    methods = {"dpk": {"token_stride": 16, "dim": 16, "heads": 2}}
    torch.manual_seed(1)
    assert distil(model, teacher, methods, ["p3", "p4"], max_iter=3) is model
    assert model.distillation.schedule.max_iter == expected.distillation.schedule.max_iter == 3
    model.load_state_dict(expected.state_dict())  # DPK's own start is drawn
    losses, others = train_step(model, batch), train_step(expected, batch)
    assert losses.keys() == others.keys() and "loss_dpk" in losses
    assert all(torch.equal(losses[name], others[name]) for name in losses)


def test_a_teacher_that_was_told_another_channel_order_is_an_error(tiny):
    teacher = load_teacher(str(tiny.teacher), str(tiny.weights), student_format="RGB")
    with pytest.raises(UserError, match=r"are BGR but .* RGB: .*\(\.\.\., student_format='BGR'\)"):
        distil(tiny.build("plain"), teacher, {"fitnets": {}})
    model = tiny.build("plain", "INPUT.FORMAT", "RGB")
    assert distil(model, teacher, {"fitnets": {}}) is model
    silent = tiny.build("plain")
    del silent.input_format  # a model need not say it
    distil(silent, teacher, {"fitnets": {}})


def test_distil_takes_what_a_lazy_config_holds(tiny, batch):
    lazy = LazyCall(distil)(
        model=LazyCall(tiny.build)(name="plain"),
        teacher=LazyCall(load_teacher)(config_file=str(tiny.teacher), weights=str(tiny.weights)),
        methods={"pkd": {"weight": 2.0}, "kd": {}},
        levels=["p3"],
    )
    model = instantiate(lazy)
    assert [x.student for x in model.distiller.methods["pkd"].levels] == ["p3"]
    losses = train_step(model, batch)
    assert {"loss_pkd", "loss_kd_roi", "loss_rpn_cls"} <= losses.keys()


def test_the_teacher_follows_a_model_that_is_moved_after_attaching(parties, batch):
    # as `instantiate(cfg.model).to(device)` does; "meta" stands for a GPU
    model, spy = Headless(parties[0]), Spy([])
    attach_distiller(model, parties[1], spy, grad_share_every=0)
    assert {p.device.type for p in parties[1].model.parameters()} == {"cpu"}
    parties[0].to("meta")
    model.train()(batch)
    _, teacher, _ = spy.seen
    assert {x.device.type for x in teacher.maps.values()} == {"meta"}
    assert {x.device.type for x in parties[1].model.state_dict().values()} == {"meta"}
