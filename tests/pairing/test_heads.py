"""Logits of student and teacher on the same places, against the heads asked by hand."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage

from dpk_det.data import made_up_batch
from dpk_det.distill import Distiller, build_distiller
from dpk_det.errors import UserError
from dpk_det.pairing.attach import attach_distiller
from dpk_det.pairing.heads import ComparedHeads
from dpk_det.pairing.levels import pair_levels
from dpk_det.pairing.teacher import Teacher, build_teacher

RETINANET = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 2]
RETINANET += ["MODEL.RETINANET.IN_FEATURES", "['p2', 'p3', 'p4']", "MODEL.RETINANET.NUM_CONVS", 1]
RETINANET_OF_9 = [*RETINANET, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.5, 1.0, 2.0]]"]
RETINANET_OF_9 += ["MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 20, 25], [32, 40, 50], [64, 80, 101]]"]
FCOS = ["MODEL.META_ARCHITECTURE", "FCOS", "MODEL.FCOS.NUM_CLASSES", 2]
FCOS += ["MODEL.FCOS.IN_FEATURES", "['p2', 'p3', 'p4']", "MODEL.FCOS.NUM_CONVS", 1]
PANOPTIC = ["MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.MASK_ON", True]
PANOPTIC += ["MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p3']", "MODEL.SEM_SEG_HEAD.NORM", ""]
PANOPTIC += ["MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8]
AGNOSTIC = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
GIVEN = ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", True]
CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"]
CASCADE += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
PROPOSALS = ["MODEL.META_ARCHITECTURE", "ProposalNetwork"]
COARSE = ["MODEL.RPN.IN_FEATURES", "['p4']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[64]]"]
FINE = ["MODEL.RPN.IN_FEATURES", "['p2', 'p3']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32]]"]
SIZES = [(64, 64), (64, 96)]  # of the batch's images


class Spy(Distiller):
    """Wants logits and keeps what it is shown."""

    heads = frozenset({"roi", "rpn", "dense"})

    def forward(self, student, teacher, targets=None):
        self.seen = student, teacher
        return {"loss_spy": sum(x.sum() for x in student.maps.values()) * 0}


@pytest.fixture
def attach(tiny):
    """``attach(student options, teacher options)`` gives a model, its teacher and the spy."""

    def make(own=(), other=()):
        model = tiny.build("plain", *own)
        teacher = Teacher(tiny.build("teacher", *other, seed=5), "RGB", "BGR")
        spy = Spy([])
        attach_distiller(model, teacher, spy)
        return model, teacher, spy

    return make


def train_step(model, batch):
    torch.manual_seed(0)
    with EventStorage():
        return model.train()(batch)


def watch(module, calls=None):
    """Note what a module returns."""
    calls = [] if calls is None else calls
    module.register_forward_hook(lambda _, args, out: calls.append(out))
    return calls


def by_hand(heads, maps, boxes):
    """Class logits of boxes, through a detector's own heads."""
    with torch.no_grad():
        pooled = heads.box_pooler([maps[name] for name in heads.box_in_features], boxes)
        head, predictor = heads.box_head, heads.box_predictor
        if isinstance(predictor, torch.nn.ModuleList):
            head, predictor = head[0], predictor[0]
        return predictor(head(pooled))[0]


def valid_rows(head, maps, names, strides):
    """Logits of each cell that is not padding, level by level, image by image, row by row."""
    with torch.no_grad():
        answers = head([maps[name] for name in names])[0]
    rows = []
    for answer, name in zip(answers, names, strict=True):
        for i, (height, width) in enumerate(SIZES):
            for r in range(math.ceil(height / strides[name])):
                for c in range(math.ceil(width / strides[name])):
                    rows.append(answer[i, :, r, c])
    return torch.stack(rows)


def check_regions(model, teacher, spy, regions):
    student, other = spy.seen
    boxes = [x.proposal_boxes for x in regions]
    own = student.logits["roi"]
    assert own.exclusive and other.logits["roi"].exclusive
    assert own.values.shape == (sum(map(len, boxes)), 3) and len(own.values) > 4
    torch.testing.assert_close(own.values, by_hand(model.roi_heads, student.maps, boxes))
    torch.testing.assert_close(
        other.logits["roi"].values, by_hand(teacher.model.roi_heads, other.maps, boxes)
    )
    assert torch.equal(own.labels, torch.cat([x.gt_classes for x in regions]))
    assert own.labels.min() < 2 and own.labels.max() == 2  # objects and background
    assert own.values.requires_grad and not other.logits["roi"].values.requires_grad


def test_region_logits_are_those_of_the_students_own_samples(attach, batch):
    model, teacher, spy = attach()
    regions = watch(model.roi_heads)
    train_step(model, batch)
    check_regions(model, teacher, spy, regions[0][0])


def test_the_regions_of_each_step_are_its_own(attach, batch):
    model, teacher, spy = attach()
    regions = watch(model.roi_heads)
    train_step(model, batch)
    first = spy.seen[0].logits["roi"].values
    torch.manual_seed(9)
    with EventStorage():
        model.train()(batch[::-1])
    check_regions(model, teacher, spy, regions[1][0])
    second = spy.seen[0].logits["roi"].values
    assert first.shape != second.shape or not torch.equal(first, second)


def test_proposal_logits_are_those_of_the_cells_that_are_not_padding(attach, batch):
    model, teacher, spy = attach()
    train_step(model, batch)
    student, other = spy.seen
    assert list(student.logits) == list(other.logits) == ["rpn", "roi"]
    names, strides = ["p2", "p3", "p4"], {"p2": 4, "p3": 8, "p4": 16}
    for features, net in ((student, model), (other, teacher.model)):
        head = net.proposal_generator.rpn_head
        want = valid_rows(head, features.maps, names, strides)
        logits = features.logits["rpn"]
        assert not logits.exclusive and logits.labels is None
        assert want.shape == (16 * 16 + 16 * 24 + 8 * 8 + 8 * 12 + 4 * 4 + 4 * 6, 1)
        torch.testing.assert_close(logits.values, want)
    assert student.logits["rpn"].values.requires_grad
    assert not other.logits["rpn"].values.requires_grad


def test_images_of_one_size_have_no_padding_to_leave_out(attach, batch):
    model, _, spy = attach()
    train_step(model, [batch[0], batch[0]])
    for features in spy.seen:
        assert features.logits["rpn"].values.shape == (2 * (16 * 16 + 8 * 8 + 4 * 4), 1)


def test_only_strides_that_both_heads_look_at_are_compared(attach, batch):
    model, teacher, spy = attach(FINE)  # the teacher's looks at p4 too
    train_step(model, batch)
    names, strides = ["p2", "p3"], {"p2": 4, "p3": 8}
    student, other = spy.seen
    want = valid_rows(model.proposal_generator.rpn_head, student.maps, names, strides)
    torch.testing.assert_close(student.logits["rpn"].values, want)
    want = valid_rows(teacher.model.proposal_generator.rpn_head, other.maps, names, strides)
    torch.testing.assert_close(other.logits["rpn"].values, want)


def test_dense_detectors_compare_all_classes_of_all_anchors(attach, batch):
    model, teacher, spy = attach(RETINANET, RETINANET)
    train_step(model, batch)
    names, strides = ["p2", "p3", "p4"], {"p2": 4, "p3": 8, "p4": 16}
    for features, net in zip(spy.seen, (model, teacher.model), strict=True):
        assert list(features.logits) == ["dense"]
        logits = features.logits["dense"]
        assert not logits.exclusive and logits.labels is None
        want = valid_rows(net.head, features.maps, names, strides)
        assert want.shape[1] == 2  # one anchor of two classes
        torch.testing.assert_close(logits.values, want)


def test_fcos_says_each_class_of_each_cell(attach, batch):
    model, teacher, spy = attach(FCOS, FCOS)
    train_step(model, batch)
    names, strides = ["p2", "p3", "p4"], {"p2": 4, "p3": 8, "p4": 16}
    for features, net in zip(spy.seen, (model, teacher.model), strict=True):
        assert list(features.logits) == ["dense"]
        want = valid_rows(net.head, features.maps, names, strides)
        assert want.shape[1] == 2
        torch.testing.assert_close(features.logits["dense"].values, want)


@pytest.mark.parametrize(("own", "other"), [(PANOPTIC, ()), ((), PANOPTIC), (AGNOSTIC, ())])
def test_panoptic_and_class_agnostic_heads_compare_as_any_rcnns(tiny, attach, batch, own, other):
    model, teacher, spy = attach(own, other)
    regions = watch(model.roi_heads)
    if own is PANOPTIC:
        batch = made_up_batch(tiny.cfg("plain", *PANOPTIC), 2)
    train_step(model, batch)
    check_regions(model, teacher, spy, regions[0][0])
    assert list(spy.seen[0].logits) == ["rpn", "roi"]


@pytest.mark.parametrize(("own", "other"), [(GIVEN, ()), ((), GIVEN)])
def test_where_proposals_are_given_regions_alone_are_compared(tiny, attach, batch, own, other):
    model, teacher, spy = attach(own, other)
    regions = watch(model.roi_heads)
    train_step(model, made_up_batch(tiny.cfg("plain", *GIVEN), 2))
    check_regions(model, teacher, spy, regions[0][0])
    assert list(spy.seen[0].logits) == list(spy.seen[1].logits) == ["roi"]


@pytest.mark.parametrize(("own", "other"), [(CASCADE, ()), ((), CASCADE), (CASCADE, CASCADE)])
def test_of_a_cascade_the_first_stage_is_compared(attach, batch, own, other):
    model, teacher, spy = attach(own, other)
    regions = watch(model.roi_heads)
    train_step(model, batch)
    check_regions(model, teacher, spy, regions[0][0])


def test_heads_that_only_one_has_are_left_out(attach, batch):
    model, _, spy = attach(PROPOSALS)
    train_step(model, batch)
    assert list(spy.seen[0].logits) == list(spy.seen[1].logits) == ["rpn"]


# ------------------------------------------------------------------ what is watched, and when


def hooks(*models):
    return [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks))
        for model in models
        for name, module in model.named_modules()
        if not name.startswith("distiller")
    ]


def test_removing_takes_all_hooks_off(tiny, batch):
    model, teacher = tiny.build("plain"), build_teacher(tiny.cfg("dpk"))
    before = hooks(model, teacher.model)
    bond = attach_distiller(model, teacher, Spy([]))
    during = hooks(model, teacher.model)
    assert sum(a != b for a, b in zip(before, during, strict=True)) >= 5
    bond.remove()
    assert hooks(model, teacher.model) == before
    train_step(model, batch)


def test_a_pair_that_is_refused_leaves_no_hook_behind(tiny):
    # the proposals could be compared, the regions cannot
    model, teacher = tiny.build("plain"), build_teacher(tiny.cfg("dpk"))
    model.roi_heads.box_predictor.use_sigmoid_ce = True
    before = hooks(model, teacher.model)
    with pytest.raises(UserError, match="USE_SIGMOID_CE"):
        attach_distiller(model, teacher, Spy([]))
    assert hooks(model, teacher.model) == before and not hasattr(model, "distiller")


def test_methods_without_logits_watch_no_heads(tiny):
    model, teacher = tiny.build("plain"), build_teacher(tiny.cfg("dpk"))
    before = hooks(model.roi_heads, model.proposal_generator, teacher.model)
    attach_distiller(model, teacher, Distiller([]))
    assert hooks(model.roi_heads, model.proposal_generator, teacher.model) == before


def test_nothing_is_seen_in_evaluation_or_without_gradients(attach, batch, watch_tensors, kept):
    model, _, spy = attach()
    made = watch_tensors(model.roi_heads.box_predictor, model.proposal_generator.rpn_head)
    with torch.no_grad():
        model.eval()(batch)
        train_step(model, batch)
    model.eval()(batch)
    assert made and kept(made) == 0 and not hasattr(spy, "seen")


def test_nothing_of_a_step_is_kept(attach, batch, watch_tensors, kept):
    # the graph, and its memory, must not outlive the step
    model, _, spy = attach()
    made = watch_tensors(model.roi_heads.box_predictor, model.proposal_generator.rpn_head)
    train_step(model, batch)
    del spy.seen  # which the method itself keeps
    assert made and kept(made) == 0


def test_the_teachers_heads_stay_as_they_are(attach, batch):
    model, teacher, _ = attach()
    before = {name: x.clone() for name, x in teacher.model.state_dict().items()}
    train_step(model, batch)
    assert not any(module.training for module in teacher.model.modules())
    assert all(torch.equal(x, before[name]) for name, x in teacher.model.state_dict().items())


@pytest.mark.parametrize("opts", [(), RETINANET])
def test_logit_losses_reach_the_students_head_and_trunk(tiny, batch, opts):
    model = tiny.build("plain", *opts)
    teacher = Teacher(tiny.build("teacher", *opts, seed=5), "RGB", "BGR")
    levels = pair_levels(model.backbone.output_shape(), teacher.model.backbone.output_shape())
    methods = {"kd": {"rpn_weight": 0.5}, "dkd": {}}
    attach_distiller(model, teacher, build_distiller(methods, levels))
    losses = train_step(model, batch)
    names = ["kd_dense", "dkd_dense"] if opts else ["kd_roi", "kd_rpn", "dkd_roi"]
    assert [name for name in losses if "kd" in name] == [f"loss_{name}" for name in names]
    for name in names:
        model.zero_grad()
        losses[f"loss_{name}"].backward(retain_graph=True)
        assert model.backbone.bottom_up.stem.conv1.weight.grad.any(), name
        if name.endswith("roi"):
            assert model.roi_heads.box_predictor.cls_score.weight.grad.any()
    assert all(p.grad is None for p in teacher.model.parameters())


def test_a_student_that_is_its_teacher_has_no_loss(tiny, batch):
    opts = ["MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]"]
    model = tiny.build("plain", *opts)
    teacher = Teacher(tiny.build("plain", *opts), "BGR", "BGR")
    attach_distiller(model, teacher, build_distiller({"kd": {"rpn_weight": 1.0}, "dkd": {}}, []))
    losses = train_step(model, batch)
    for name in ("loss_kd_rpn", "loss_kd_roi", "loss_dkd_roi"):
        assert losses[name].item() == pytest.approx(0, abs=1e-6), name


# ------------------------------------------------------------------ mistakes


def test_other_classes_are_an_error_when_attached(attach):
    with pytest.raises(UserError, match="student knows 2 classes and its teacher 3, so their"):
        attach((), ["MODEL.ROI_HEADS.NUM_CLASSES", 3])


def test_heads_of_different_kind_are_an_error_when_attached(attach):
    with pytest.raises(
        UserError, match="A GeneralizedRCNN student and a RetinaNet teacher share none of the"
    ):
        attach((), RETINANET)


def test_a_pair_that_shares_only_proposals_is_an_error_for_a_method_on_classes(tiny):
    student, teacher = tiny.build("plain", *PROPOSALS), tiny.build("teacher")
    with pytest.raises(UserError, match=r"share none of the heads .*\(dense, roi\): choose"):
        ComparedHeads(student, teacher, {"roi", "dense"})
    assert ComparedHeads(student, teacher, {"roi", "rpn"}).box is None


def test_a_head_that_nobody_reads_is_neither_watched_nor_asked(tiny, batch):
    model = tiny.build("plain")
    teacher = Teacher(tiny.build("teacher", *COARSE), "RGB", "BGR")  # with proposals of its own
    asked = watch(teacher.model.proposal_generator.rpn_head)
    attach_distiller(model, teacher, build_distiller({"kd": {}}, []))
    assert "loss_kd_roi" in train_step(model, batch)
    assert not asked


def test_a_model_without_known_heads_is_an_error(tiny):
    model = tiny.build("plain")
    bare = torch.nn.Module()
    bare.backbone = model.backbone
    for pair in ((bare, model), (model, bare)):
        with pytest.raises(
            UserError, match="share none of the heads whose logits are to be compared .roi"
        ):
            ComparedHeads(*pair, ["roi"])


@pytest.mark.parametrize(
    ("own", "other", "told"),
    [
        ((), ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.5, 1.0]]"], "At stride 4 .* other anch"),
        (
            (),
            ["MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [33], [64]]"],
            "At stride 8 .* other anchors",
        ),
        (FINE, COARSE, "student and teacher share no stride: choose a"),
        (RETINANET_OF_9, FCOS, r"\(9 and 1 a cell\).*as for RetinaNet with FCOS"),
        (FCOS, RETINANET_OF_9, r"\(1 and 9 a cell\).*as for RetinaNet with FCOS"),
    ],
)
def test_anchors_that_do_not_compare_are_an_error_when_attached(attach, own, other, told):
    with pytest.raises(UserError, match=told):
        attach(own, other)


def test_a_box_head_of_sigmoids_is_an_error(tiny):
    student, teacher = tiny.build("plain"), tiny.build("teacher")
    student.roi_heads.box_predictor.use_sigmoid_ce = True
    with pytest.raises(UserError, match="USE_SIGMOID_CE has no classes that exclude"):
        ComparedHeads(student, teacher, {"roi"})


def test_a_step_that_was_broken_off_leaves_nothing_to_the_next(attach, batch, monkeypatch):
    model, _, spy = attach()
    predictor = model.roi_heads.box_predictor
    with monkeypatch.context() as broken, pytest.raises(MemoryError):
        broken.setattr(predictor, "losses", lambda *args: (_ for _ in ()).throw(MemoryError()))
        train_step(model, batch[:1])
    train_step(model, batch)
    student, teacher = spy.seen
    assert len(student.logits["roi"].values) == len(teacher.logits["roi"].values)


@pytest.mark.parametrize(
    ("opts", "frozen"),
    [
        ((), ["roi_heads.box_predictor"]),
        ((), ["roi_heads.box_head", "roi_heads.box_pooler", "roi_heads.box_predictor"]),
        ((), ["proposal_generator.rpn_head"]),
        (RETINANET, ["head"]),
    ],
)
def test_a_head_that_is_frozen_in_evaluation_mode_is_compared_all_the_same(
    attach, batch, opts, frozen
):
    model, _, spy = attach(opts, opts)
    model.train()
    for path in frozen:
        model.get_submodule(path).eval().requires_grad_(False)
    torch.manual_seed(0)
    with EventStorage():
        model(batch)
    assert list(spy.seen[0].logits) == (["dense"] if opts else ["rpn", "roi"])
    assert all(x.values.requires_grad for x in spy.seen[0].logits.values())


def test_regions_that_are_not_sampled_are_an_error(attach, batch):
    model, *_ = attach()
    model.train().roi_heads.eval()
    with (
        EventStorage(),
        pytest.raises(UserError, match=r"roi_heads .* no regions.*roi_heads.train"),
    ):
        model(batch)


@pytest.mark.parametrize(("opts", "name"), [((), "rpn"), ((), "roi"), (RETINANET, "dense")])
def test_a_head_that_has_not_run_is_an_error(tiny, opts, name):
    heads = ComparedHeads(tiny.build("plain", *opts), tiny.build("teacher", *opts), {name})
    with pytest.raises(UserError, match=f"The student's {name} head has not run with gradients"):
        heads.compare({}, SIZES)


def test_dense_heads_of_other_classes_are_an_error_when_attached(attach):
    other = [*RETINANET, "MODEL.RETINANET.NUM_CLASSES", 3]
    with pytest.raises(UserError, match="student knows 2 classes and its teacher 3, so their"):
        attach(RETINANET, other)


def test_a_dense_head_that_does_not_say_its_classes_is_found_out_in_the_first_step(tiny, batch):
    student = tiny.build("plain", *RETINANET)
    teacher = tiny.build("plain", *RETINANET, "MODEL.RETINANET.NUM_CLASSES", 3)
    teacher.num_classes = None  # as a user's own may have none
    attach_distiller(student, Teacher(teacher, "BGR", "BGR"), Spy([]))
    with pytest.raises(UserError, match="says 2 things of a cell and its teacher's 3"):
        train_step(student, batch)
