"""The frozen teacher: what it sees, that nothing changes it, and that its weights must fit."""

import sys

import detectron2
import pytest
import torch
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from dpk_det.distill import Features
from dpk_det.errors import UserError
from dpk_det.pairing.inherit import inherit_weights
from dpk_det.pairing.teacher import (
    Teacher,
    build_teacher,
    find_teacher_weights,
    load_teacher,
    load_teacher_config,
    preprocess,
)

ZOO_NAME = "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"
# of the tiny teacher's config
MEAN = torch.tensor([90.0, 100.0, 110.0]).view(3, 1, 1)
STD = torch.tensor([40.0, 50.0, 60.0]).view(3, 1, 1)


def noise_images(*sizes):
    g = torch.Generator().manual_seed(0)
    return [{"image": torch.randint(256, (3, *size), generator=g).byte()} for size in sizes]


def snapshot(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def losses_of(model, batch):
    with EventStorage():
        return model.train()(batch)


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(x, other[name]) for name, x in one.items())


# ------------------------------------------------------------------ what it sees


@pytest.mark.parametrize("student_format", ["BGR", "RGB"])
def test_it_normalises_flips_and_pads_its_own_way(tiny, student_format):
    teacher = build_teacher(tiny.cfg("dpk", "INPUT.FORMAT", student_format))
    images = noise_images((70, 80), (64, 50))
    seen = teacher(images)

    # by hand: the teacher takes RGB and pads to multiples of 32 (its student to those of 16)
    by_hand = torch.zeros(2, 3, 96, 96)
    for padded, x in zip(by_hand, images, strict=True):
        image = x["image"].float()
        image = image[[2, 1, 0]] if student_format == "BGR" else image
        padded[:, : image.shape[1], : image.shape[2]] = (image - MEAN) / STD
    expected = teacher.model.backbone(by_hand)

    assert set(seen.maps) == {"p2", "p3", "p4", "p5", "p6"}
    assert all(torch.equal(seen.maps[name], expected[name]) for name in expected)
    assert seen.maps["p2"].shape == (2, 16, 24, 24)
    assert seen.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert [tuple(size) for size in seen.image_sizes] == [(70, 80), (64, 50)]


def test_it_leaves_the_students_images_as_they_are(tiny):
    teacher = build_teacher(tiny.cfg("dpk"))
    images = noise_images((64, 64))
    before = images[0]["image"].clone()
    teacher(images)
    assert torch.equal(images[0]["image"], before)


@pytest.mark.parametrize(
    ("key", "value", "tolerance"),
    [("CHANNELS_LAST", True, 1e-5), ("PRECISION", "bf16", 0.05), ("PRECISION", "fp16", 0.05)],
)
def test_a_faster_teacher_sees_the_same(tiny, batch, key, value, tolerance):
    slow = build_teacher(tiny.cfg("dpk"))(batch).maps
    fast = build_teacher(tiny.cfg("dpk", f"DISTILL.TEACHER.{key}", value))(batch).maps
    for name, want in slow.items():
        assert fast[name].dtype == torch.float32
        difference = (fast[name] - want).norm() / want.norm()
        assert difference < tolerance
        # it did something
        assert difference > 0 if key == "PRECISION" else fast[name].stride(1) == 1


@pytest.mark.parametrize("own", [False, True])
def test_images_may_have_their_channels_last(tiny, batch, own):
    teacher = build_teacher(tiny.cfg("dpk", "DISTILL.TEACHER.CHANNELS_LAST", own))
    images = preprocess(teacher.model, batch).tensor
    want = teacher(batch, images).maps
    got = teacher(batch, images.to(memory_format=torch.channels_last)).maps
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, rtol=1e-4, atol=1e-5)


def test_a_compiled_teacher_runs_what_the_compiler_made(tiny, batch, monkeypatch):
    made = []

    def compiler(network, **options):
        made.append(options)
        return lambda images: {name: x + 1 for name, x in network(images).items()}

    monkeypatch.setattr(torch, "compile", compiler)
    plain = build_teacher(tiny.cfg("dpk"))(batch).maps
    assert not made
    compiled = build_teacher(tiny.cfg("dpk", "DISTILL.TEACHER.COMPILE", True))(batch).maps
    assert made == [{"dynamic": True}]
    assert all(torch.equal(compiled[name], plain[name] + 1) for name in plain)


def test_an_unknown_precision_is_named(tiny):
    with pytest.raises(UserError, match="TEACHER.PRECISION.* named 'bf61': did you mean 'bf16'"):
        build_teacher(tiny.cfg("dpk", "DISTILL.TEACHER.PRECISION", "bf61"))


def test_its_config_may_be_overridden(tiny):
    cfg = tiny.cfg("dpk", "DISTILL.TEACHER.OPTS", "['MODEL.PIXEL_MEAN', [1.0, 2.0, 3.0]]")
    assert build_teacher(cfg).model.pixel_mean.flatten().tolist() == [1, 2, 3]


# ------------------------------------------------------------------ frozen


def test_it_stays_in_eval_mode_and_gives_no_gradient(tiny, batch):
    model = tiny.build("dpk").train()
    teacher = model.distillation.teacher
    assert not any(module.training for module in teacher.model.modules())
    assert not any(p.requires_grad for p in teacher.model.parameters())
    for x in batch:  # not even towards the images
        x["image"] = x["image"].float().requires_grad_()
    assert not any(x.requires_grad for x in teacher(batch).maps.values())


def test_training_changes_no_number_of_it_not_even_batchnorms_statistics(tiny, batch, tmp_path):
    opts = ("MODEL.RESNETS.NORM", "BN")
    weights = tmp_path / "bn.pth"
    torch.save({"model": tiny.build("teacher", *opts).state_dict()}, weights)
    node = "DISTILL.TEACHER"
    cfg_opts = (f"{node}.OPTS", list(opts), f"{node}.WEIGHTS", weights)
    model = tiny.build("dpk", *cfg_opts)
    teacher = model.distillation.teacher.model
    assert any("running_mean" in name for name in teacher.state_dict())
    before, student_before = snapshot(teacher), snapshot(model)

    optimizer = build_optimizer(tiny.cfg("dpk"), model)
    for _ in range(2):
        optimizer.zero_grad()
        sum(losses_of(model, batch).values()).backward()
        optimizer.step()

    assert same(before, teacher.state_dict())
    assert not same(student_before, model.state_dict())  # there was something to change it


# ------------------------------------------------------------------ what is learned from it


def test_a_student_equal_to_its_teacher_has_cka_1_and_ratio_0(tiny, batch, tmp_path):
    weights = tmp_path / "twin.pth"
    twin = tiny.build("plain", seed=5)
    torch.save({"model": twin.state_dict()}, weights)
    node = "DISTILL.TEACHER"
    opts = (f"{node}.CONFIG_FILE", tiny.plain, f"{node}.WEIGHTS", weights)
    model = tiny.build("dpk", *opts)
    model.load_state_dict(twin.state_dict(), strict=False)
    losses_of(model, batch)
    metrics = model.distiller.metrics
    ckas = [metrics[f"dpk/cka_{name}"].item() for name in ("p2", "p3", "p4")]
    assert ckas == pytest.approx([1, 1, 1], abs=1e-4)
    ratios = [metrics[f"dpk/ratio_{name}"].item() for name in ("p2", "p3", "p4")]
    assert ratios == pytest.approx([0, 0, 0], abs=1e-4)


def test_a_teacher_of_noise_resembles_nothing_so_nearly_all_is_prior(tiny, batch, monkeypatch):
    model = tiny.build("dpk")
    sees = Teacher.__call__

    def noise(teacher, batched_inputs, images):
        seen = sees(teacher, batched_inputs, images)
        maps = {name: torch.randn_like(x) for name, x in seen.maps.items()}
        return Features(maps, seen.strides, seen.image_sizes)

    monkeypatch.setattr(Teacher, "__call__", noise)
    torch.manual_seed(0)
    for _ in range(30):
        losses_of(model, batch)
    ratios = {n: x.item() for n, x in model.distiller.metrics.items() if "/ratio_" in n}
    assert len(ratios) == 3
    assert min(ratios.values()) > 0.9


@pytest.mark.parametrize("kind", ["ProposalNetwork", "SemanticSegmentor"])
def test_a_teacher_that_preprocesses_in_its_forward_sees_what_its_backbone_sees(tiny, batch, kind):
    opts = ["MODEL.META_ARCHITECTURE", kind, "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p3']"]
    opts += ["MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.SEM_SEG_HEAD.NORM", ""]
    model = tiny.build("teacher", *opts)
    assert not hasattr(model, "preprocess_image")
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    features = Teacher(model, "BGR", "BGR")(batch)
    with torch.no_grad():
        model.eval()(batch)
    assert torch.equal(seen[0], seen[1])
    assert features.image_sizes == [(64, 64), (64, 96)]


# ------------------------------------------------------------------ its weights must fit


def altered(tiny, tmp_path, change):
    """A copy of the teacher's weights after ``change(state)``; the config of a student of it."""
    state = torch.load(tiny.weights)["model"]
    change(state)
    path = tmp_path / "altered.pth"
    torch.save({"model": state}, path)
    return tiny.cfg("dpk", "DISTILL.TEACHER.WEIGHTS", path)


LATERAL = "backbone.fpn_lateral3.weight"


def test_a_missing_weight_is_an_error_that_names_it(tiny, tmp_path):
    cfg = altered(tiny, tmp_path, lambda state: state.pop(LATERAL))
    with pytest.raises(UserError, match=f"1 is missing from the file, {LATERAL}; give DISTILL.TEA"):
        build_teacher(cfg)


def test_a_misshapen_weight_is_an_error_that_names_it(tiny, tmp_path):
    cfg = altered(tiny, tmp_path, lambda state: state.update({LATERAL: torch.zeros(3)}))
    with pytest.raises(UserError, match=f"1 is of another shape in the file, {LATERAL}; give"):
        build_teacher(cfg)


def test_a_weight_too_many_is_an_error_that_names_it(tiny, tmp_path):
    cfg = altered(tiny, tmp_path, lambda state: state.update({"stranger.weight": torch.zeros(3)}))
    with pytest.raises(UserError, match="1 is in the file but not in the model, stranger.weight;"):
        build_teacher(cfg)


def test_the_weights_of_a_deeper_backbone_are_refused(tiny):
    # every weight of the shallow one is there: only what is left over gives it away
    opts = "['MODEL.SMALL_RESNET.BLOCKS', [1, 1, 1, 1]]"
    with pytest.raises(UserError, match=r"in the file but not in .*bottom_up\.res3\.1\.conv1"):
        build_teacher(tiny.cfg("dpk", "DISTILL.TEACHER.OPTS", opts))


def test_pixel_statistics_come_from_the_config(tiny, tmp_path):
    # buffers that older Detectron2 wrote into its checkpoints
    cfg = altered(tiny, tmp_path, lambda state: state.update(pixel_mean=torch.zeros(3, 1, 1)))
    assert torch.equal(build_teacher(cfg).model.pixel_mean, MEAN)


# ------------------------------------------------------------------ where config and weights lie


def test_no_config_is_an_error_that_shows_an_example():
    with pytest.raises(UserError, match=f"CONFIG_FILE is empty: .*{ZOO_NAME}"):
        load_teacher_config("")


def test_a_config_found_nowhere_is_an_error():
    with pytest.raises(UserError, match=r"nowhere/t\.yaml is neither a file .* nor in"):
        load_teacher_config("nowhere/t.yaml")


def test_a_zoo_name_gives_the_zoos_config_and_the_address_of_its_weights():
    cfg = load_teacher_config(ZOO_NAME, ["MODEL.ROI_HEADS.NUM_CLASSES", 3])
    assert cfg.MODEL.RESNETS.DEPTH == 101
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    zoo = "https://dl.fbaipublicfiles.com/detectron2/"
    url = f"{zoo}COCO-Detection/faster_rcnn_R_101_FPN_3x/137851257/model_final_f6e8b1.pkl"
    assert find_teacher_weights(ZOO_NAME, "", cfg) == url
    assert find_teacher_weights(ZOO_NAME, "mine.pth", cfg) == "mine.pth"


def test_a_configs_weights_are_what_its_training_has_left(tiny, tmp_path):
    cfg = tiny.cfg("teacher", "OUTPUT_DIR", tmp_path)
    path = tmp_path / "model_final.pth"
    with pytest.raises(UserError, match=rf"has no weights: train it \(that leaves {path}\)"):
        find_teacher_weights(str(tiny.teacher), "", cfg)
    path.touch()
    assert find_teacher_weights(str(tiny.teacher), "", cfg) == str(path)
    assert find_teacher_weights(str(tiny.teacher), "mine.pth", cfg) == "mine.pth"


def test_a_teacher_that_was_evaluated_as_an_average_is_that_average(tiny, tmp_path):
    cfg = tiny.cfg("teacher", "OUTPUT_DIR", tmp_path, "SOLVER.EMA_DECAY", 0.9)
    final, average = tmp_path / "model_final.pth", tmp_path / "model_ema.pth"
    with pytest.raises(UserError, match=rf"has no weights: train it \(that leaves {average}\)"):
        find_teacher_weights(str(tiny.teacher), "", cfg)
    average.touch()  # saved with every checkpoint: the training may still run
    with pytest.raises(UserError, match="has no weights: train it"):
        find_teacher_weights(str(tiny.teacher), "", cfg)
    average.unlink()
    final.touch()  # trained by something that averages nothing
    assert find_teacher_weights(str(tiny.teacher), "", cfg) == str(final)
    average.touch()
    assert find_teacher_weights(str(tiny.teacher), "", cfg) == str(average)
    cfg.SOLVER.EMA_DECAY = 0.0  # the average is an older training's
    assert find_teacher_weights(str(tiny.teacher), "", cfg) == str(final)


def test_absent_weights_are_an_error_that_names_the_key(tiny, tmp_path):
    cfg = tiny.cfg("dpk", "DISTILL.TEACHER.WEIGHTS", tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.pth: give DISTILL\.TEACHER\.WEIGHTS"):
        build_teacher(cfg)


# ------------------------------------------------------------------ inheriting


@pytest.mark.parametrize("kind", ["plain", "dpk"])
def test_neck_and_heads_are_inherited_in_whole_layers(tiny, kind):
    student, teacher = tiny.build(kind, seed=1), tiny.build("teacher", seed=2)
    before, given = snapshot(student), snapshot(teacher)
    taken, left = inherit_weights(student, teacher)
    after = student.state_dict()

    # The widths of the two trunks differ, so the laterals do not fit; their biases would.
    laterals = [f"backbone.fpn_lateral{i}.{x}" for i in (2, 3, 4) for x in ("weight", "bias")]
    assert sorted(left) == sorted(laterals)
    assert given["backbone.fpn_lateral2.bias"].shape == before["backbone.fpn_lateral2.bias"].shape
    heads = [name for name in before if name.startswith(("proposal_generator.", "roi_heads."))]
    outputs = [f"backbone.fpn_output{i}.{x}" for i in (2, 3, 4) for x in ("weight", "bias")]
    assert len(heads) == 12
    assert sorted(taken) == sorted(heads + outputs)

    for name in before:
        source = given if name in taken else before
        assert torch.equal(after[name], source[name]), name
    assert student.pixel_mean.flatten().tolist() == [120, 110, 100]


def test_heads_for_other_classes_are_not_inherited(tiny):
    student = tiny.build("plain", "MODEL.ROI_HEADS.NUM_CLASSES", "5", seed=1)
    taken, left = inherit_weights(student, tiny.build("teacher"))
    assert {n for n in left if "lateral" not in n} == {
        f"roi_heads.box_predictor.{layer}.{x}"
        for layer in ("cls_score", "bbox_pred")
        for x in ("weight", "bias")
    }
    assert "roi_heads.box_head.fc1.weight" in taken


P2_TO_P4 = "['p2', 'p3', 'p4']"
RETINANET = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", P2_TO_P4]
FCOS = ["MODEL.META_ARCHITECTURE", "FCOS", "MODEL.FCOS.IN_FEATURES", P2_TO_P4]


def test_a_dense_student_of_an_rcnn_inherits_the_necks_outputs_alone(tiny):
    student = tiny.build("plain", *RETINANET, seed=1)
    before, given = snapshot(student), snapshot(teacher := tiny.build("teacher", seed=2))
    taken, left = inherit_weights(student, teacher)
    assert sorted(taken) == [
        f"backbone.fpn_output{i}.{x}" for i in (2, 3, 4) for x in ("bias", "weight")
    ]
    assert all(name.startswith(("backbone.fpn_lateral", "head.")) for name in left)
    after = student.state_dict()
    assert all(torch.equal(after[n], (given if n in taken else before)[n]) for n in before)
    # of another width not even these
    wide = tiny.build("teacher", "MODEL.FPN.OUT_CHANNELS", 24)
    with pytest.raises(UserError, match="takes nothing"):
        inherit_weights(student, wide)


@pytest.mark.parametrize(("norm", "fits"), [("", True), ("GN", False)])
def test_a_subnet_is_inherited_whole_or_not_at_all(tiny, norm, fits):
    # With norms between them the third convolution has the number that is the fourth's without.
    student = tiny.build("plain", *RETINANET)
    teacher = tiny.build("plain", *FCOS, "MODEL.FCOS.NORM", norm, seed=3)
    alike = set(student.head.state_dict()) & set(teacher.head.state_dict())
    assert "cls_subnet.6.weight" in alike
    taken, _ = inherit_weights(student, teacher)
    assert len([name for name in taken if "_subnet." in name]) == (16 if fits else 0)


def test_a_shorter_subnet_is_not_inherited(tiny):
    student = tiny.build("plain", *RETINANET, "MODEL.RETINANET.NUM_CONVS", 2)
    taken, _ = inherit_weights(student, tiny.build("plain", *RETINANET))
    assert not any("_subnet." in name for name in taken)
    assert "head.cls_score.weight" in taken


def test_an_inheriting_student_sees_what_it_inherited(tiny):
    # copied, not shared: training the student must not change its teacher
    student, teacher = tiny.build("plain", seed=1), tiny.build("teacher")
    inherit_weights(student, teacher)
    name = "roi_heads.box_head.fc1.weight"
    x = torch.randn(1, 144)
    assert torch.equal(
        F.linear(x, student.state_dict()[name]), F.linear(x, teacher.state_dict()[name])
    )
    assert student.state_dict()[name].data_ptr() != teacher.state_dict()[name].data_ptr()


def test_a_zoo_config_without_weights_is_an_error():
    name = "Base-RCNN-FPN.yaml"
    with pytest.raises(UserError, match=f"no weights for the teacher {name}: name them"):
        find_teacher_weights(name, "", load_teacher_config(name))


# ------------------------------------------------------------------ LazyConfig

LAZY = """
from detectron2.config import LazyCall as L
from detectron2.modeling import build_model
from dpk_det.config.loading import load_config


def network(config_file, mean, input_format):
    cfg = load_config(config_file, ["MODEL.PIXEL_MEAN", str(list(mean))])
    return build_model(cfg)


def silent(model):
    del model.input_format
    return model


model = L(network)(config_file={config!r}, mean=[1.0, 2.0, 3.0], input_format="RGB")
train = dict(output_dir={output!r})
"""


@pytest.fixture
def lazy(tiny, tmp_path):
    """A LazyConfig of the tiny teacher, and the folder where its training would leave weights."""
    folder = tmp_path / "lazy"
    folder.mkdir()
    path = tmp_path / "teacher.py"
    path.write_text(LAZY.format(config=str(tiny.teacher), output=str(folder)))
    return path, folder


def test_a_lazy_config_is_as_good_as_yaml(tiny, lazy):
    path, _ = lazy
    opts = ["MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]]
    expected = load_teacher(str(tiny.teacher), str(tiny.weights), opts)
    teacher = load_teacher(str(path), str(tiny.weights))
    assert teacher.flip_channels and expected.flip_channels  # RGB, and BGR is what it is shown
    assert same(teacher.model.state_dict(), expected.model.state_dict())
    images = noise_images((70, 80), (64, 50))
    assert same(teacher(images).maps, expected(images).maps)
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_a_lazy_config_may_be_overridden_and_need_not_say_its_format(tiny, lazy):
    path, _ = lazy
    opts = ["model.mean", [4.0, 5.0, 6.0], "model.input_format", "BGR"]
    teacher = load_teacher(str(path), str(tiny.weights), opts)
    assert teacher.model.pixel_mean.flatten().tolist() == [4, 5, 6]
    assert not teacher.flip_channels
    path.write_text(
        path.read_text()
        .replace(', input_format="RGB"', "")
        .replace("input_format):", 'input_format="RGB"):')
    )
    assert load_teacher(str(path), str(tiny.weights)).flip_channels  # its model says so
    path.write_text(f"{path.read_text()}\nmodel = L(silent)(model=model)")
    assert not load_teacher(str(path), str(tiny.weights)).flip_channels


def test_the_weights_of_a_lazy_config_are_what_its_training_has_left(tiny, lazy):
    path, folder = lazy
    trained = folder / "model_final.pth"
    with pytest.raises(UserError, match=rf"train it \(that leaves {trained}\)"):
        load_teacher(str(path))
    state = torch.load(tiny.weights)
    torch.save(state, trained)
    assert same(
        load_teacher(str(path)).model.state_dict(), tiny.build("teacher", seed=7).state_dict()
    )
    del state["model"][LATERAL]
    torch.save(state, trained)
    with pytest.raises(UserError, match=f"missing from the file, {LATERAL}"):
        load_teacher(str(path))


def test_the_zoos_lazy_configs_are_known_with_their_weights():
    name = "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py"
    cfg = load_teacher_config(name, ["model.roi_heads.num_classes", 3])
    assert cfg.model.roi_heads.num_classes == 3
    url = find_teacher_weights(name, "", cfg)
    assert url.startswith(f"https://dl.fbaipublicfiles.com/detectron2/{name[:-3]}/")


def test_a_lazy_config_without_a_model_is_an_error(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("train = dict(output_dir='x')\n")
    with pytest.raises(UserError, match="empty.py defines no 'model'"):
        load_teacher(str(path))


def test_overrides_of_a_lazy_config_come_in_pairs(lazy):
    with pytest.raises(UserError, match="are no pairs"):
        load_teacher_config(str(lazy[0]), ["model.mean"])


def test_what_was_inherited_is_logged(tiny, caplog):
    caplog.set_level("INFO", "dpk_det")
    inherit_weights(tiny.build("plain", seed=1), tiny.build("teacher"))
    assert "Inherited 18 weights of the teacher: " in caplog.text
    assert "of another name or shape: backbone.fpn_lateral2" in caplog.text


@pytest.mark.parametrize("find", [load_teacher_config, lambda x: find_teacher_weights(x, "", None)])
def test_a_model_zoo_that_lacks_pkg_resources_says_what_to_install(monkeypatch, find):
    monkeypatch.delattr(detectron2, "model_zoo", raising=False)
    monkeypatch.setitem(sys.modules, "detectron2.model_zoo", None)
    with pytest.raises(UserError, match="install 'setuptools<82'.*by their paths"):
        find(ZOO_NAME)


def test_a_student_that_can_inherit_nothing_is_an_error(tiny):
    student = tiny.build("plain", "MODEL.FPN.OUT_CHANNELS", 8, "MODEL.ROI_HEADS.NUM_CLASSES", 3)
    teacher = torch.nn.Module()
    with pytest.raises(UserError, match="DISTILL.INHERIT takes nothing, .*: set it to False"):
        inherit_weights(student, teacher)
