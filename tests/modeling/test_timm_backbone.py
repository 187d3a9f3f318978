"""timm's networks as backbones, against timm's own features; its smallest ones stand for all."""

import ast
import logging
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from detectron2.modeling import build_backbone
from safetensors.torch import save_file
from timm.layers import FrozenBatchNormAct2d
from timm.models import FeatureInfo
from torch import nn

from dpk_det.architectures import plain_architecture
from dpk_det.config.loading import load_config
from dpk_det.errors import UserError
from dpk_det.modeling.timm_backbone import TimmBackbone

SEEN = ["MODEL.PIXEL_MEAN", "[127.5, 127.5, 127.5]", "MODEL.PIXEL_STD", "[127.5, 127.5, 127.5]"]
SEEN += ["INPUT.FORMAT", "RGB"]  # what test_resnet was trained with


VIT = "vit_tiny_patch16_224"  # takes no other size, unless it is told to


def config(name, *opts, kwargs=(), neck=False):
    builder = "build_timm_fpn_backbone" if neck else "build_timm_backbone"
    cfg = load_config(
        "",
        [
            *("MODEL.BACKBONE.NAME", builder, "MODEL.BACKBONE.FREEZE_AT", "0"),
            *("MODEL.TIMM.NAME", name, "MODEL.FPN.OUT_CHANNELS", "8"),
            *(str(opt) for opt in opts),
        ],
    )
    cfg.MODEL.TIMM.KWARGS.update(kwargs)
    return cfg


def build(*args, **kwargs):
    torch.manual_seed(0)
    return build_backbone(config(*args, **kwargs))


def images(height=64, width=96):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def disturb_norms(model):
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
    return model


# ------------------------------------------------------------------ maps


@pytest.mark.parametrize(
    ("name", "indices", "names"),
    [
        ("test_resnet", (1, 2, 3, 4), ["res2", "res3", "res4", "res5"]),  # 0 has stride 2
        ("test_efficientnet", (1, 2, 3, 4), ["res2", "res3", "res4", "res5"]),
        ("test_convnext", (0, 1, 2, 3), ["res2", "res3", "res4", "res5"]),
        ("test_vit", (5,), ["res4"]),  # the last of six of stride 16
    ],
)
@torch.no_grad()
def test_the_maps_are_timms_named_by_stride(name, indices, names):
    backbone = build(name).eval()
    reference = timm.create_model(name, features_only=True, out_indices=indices).eval()
    reference.load_state_dict(backbone.body.state_dict())
    expected, maps = reference(images()), backbone(images())
    assert list(maps) == list(backbone.output_shape()) == names
    for given, same, spec in zip(
        maps.values(), expected, backbone.output_shape().values(), strict=True
    ):
        assert torch.equal(given, same)
        assert given.shape == (2, spec.channels, 64 // spec.stride, 96 // spec.stride)
    assert backbone.size_divisibility == backbone.output_shape()[names[-1]].stride


@torch.no_grad()
def test_maps_with_channels_last_are_turned():
    backbone = build("test_mambaout").eval()
    reference = timm.create_model("test_mambaout", features_only=True).eval()
    reference.load_state_dict(backbone.body.state_dict())
    for given, same in zip(backbone(images()).values(), reference(images()), strict=True):
        assert torch.equal(given, same.permute(0, 3, 1, 2)) and given.is_contiguous()
    assert backbone(images())["res2"].shape == (2, 16, 16, 24)


def test_more_arguments_go_to_timm():
    backbone = build(VIT, kwargs={"dynamic_img_size": True})
    assert backbone(images())["res4"].shape == (2, 192, 4, 6)  # refused else, see below


@pytest.mark.parametrize(
    ("indices", "names"),
    [
        ([1, 3], ["res2", "res4"]),
        ([3, 1], ["res2", "res4"]),
        ([0, -1], ["res1", "res5"]),
        ([], ["res2", "res3", "res4", "res5"]),
    ],
)
def test_indices_choose_the_maps(indices, names):
    shapes = build("test_resnet", "MODEL.TIMM.OUT_INDICES", indices).output_shape()
    info = timm.create_model("test_resnet", features_only=True).feature_info.info
    assert list(shapes) == names
    channels = {f"res{i + 1}": x["num_chs"] for i, x in enumerate(info)}
    assert {name: spec.channels for name, spec in shapes.items()} == {n: channels[n] for n in names}


def test_the_neck_stands_on_the_maps_that_it_names():
    in_features = ["MODEL.FPN.IN_FEATURES", "['res3', 'res4']"]
    fpn = build("test_resnet", *in_features, "MODEL.FPN.TOP_BLOCK", "p6p7_p5", neck=True)
    assert list(fpn.output_shape()) == list(fpn(images())) == ["p3", "p4", "p5", "p6"]
    assert list(fpn.bottom_up.output_shape()) == ["res3", "res4"]
    assert fpn.size_divisibility == 16
    sum(x.sum() for x in fpn(images()).values()).backward()  # no weight is left without a gradient
    assert all(p.grad is not None for p in fpn.parameters())


def test_mobilenetv2_has_the_maps_of_reviewkds_student():
    with torch.device("meta"):
        shapes = build("mobilenetv2_100").output_shape()
    maps = {name: (spec.stride, spec.channels) for name, spec in shapes.items()}
    assert maps == {"res2": (4, 24), "res3": (8, 32), "res4": (16, 96), "res5": (32, 320)}


def test_trying_the_network_leaves_no_trace():
    backbone = build("test_resnet")
    assert all(module.training for module in backbone.modules())
    for key, value in backbone.state_dict().items():
        if "running_mean" in key or "num_batches" in key:
            assert not value.any(), key


def test_timm_is_imported_by_functions_alone():
    for path in (Path(__file__).parents[2] / "dpk_det").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [x.name for x in getattr(node, "names", ())] + [getattr(node, "module", "")]
            assert not [name for name in names if f"{name}.".startswith("timm.")], path


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("test_resnet", 1000),
        ("test_resnet", 7),  # of somebody's own classes
        ("test_convnext", 0),  # without a classifier
        ("test_efficientnet", 1000),
        ("test_vit", 1000),
    ],
)
@torch.no_grad()
def test_a_file_of_the_whole_network_fills_the_backbone(name, classes, suffix, tmp_path):
    whole = disturb_norms(timm.create_model(name, num_classes=classes)).eval()
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(whole.state_dict(), path)
    backbone = build(name, "MODEL.TIMM.WEIGHTS", path).eval()
    expected = whole.forward_intermediates(images(), intermediates_only=True)
    by_shape = {x.shape: x for x in expected}  # of one shape the last
    for given in backbone(images()).values():
        torch.testing.assert_close(given, by_shape[given.shape], rtol=1e-4, atol=1e-5)


def test_torchvisions_resnet_files_fit_timms_resnets(tmp_path):
    reference = disturb_norms(torchvision.models.resnet18()).eval()
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    backbone = build("resnet18", "MODEL.TIMM.WEIGHTS", tmp_path / "w.pth").eval()
    with torch.no_grad():
        expected = nn.Sequential(*list(reference.children())[:-2])(images())
        torch.testing.assert_close(backbone(images())["res5"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("layer2.0.conv1.weight"),
        lambda state: state.update({"layer2.1.conv1.weight": torch.ones(1)}),  # of a deeper one
        lambda state: state.update({"layer2.0.conv1.weight": torch.ones(1)}),
    ],
    ids=["missing", "left over", "of another shape"],
)
@pytest.mark.parametrize("classes", [1000, 7, 0])
def test_a_file_that_does_not_fit_whole_is_an_error(spoil, classes, tmp_path):
    state = timm.create_model("test_resnet", num_classes=classes).state_dict()
    spoil(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth are not those of timm's test_resnet \(.*layer2\."):
        build("test_resnet", "MODEL.TIMM.WEIGHTS", tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_something_else_or_none_is_an_error(suffix, tmp_path):
    path = tmp_path / f"w.{suffix}"
    with pytest.raises(UserError, match=rf"no weights at {path}: give MODEL\.TIMM\.WEIGHTS"):
        build("test_resnet", "MODEL.TIMM.WEIGHTS", path)
    path.write_bytes(b"no weights at all")
    with pytest.raises(UserError, match=rf"{path} are not those of timm's test_resnet"):
        build("test_resnet", "MODEL.TIMM.WEIGHTS", path)


def test_evaluation_and_teachers_start_from_no_file_of_timms():
    cfg = config("test_resnet", "MODEL.TIMM.WEIGHTS", "gone.pth", "MODEL.TIMM.PRETRAINED", "True")
    build_backbone(plain_architecture(cfg))
    with pytest.raises(UserError, match=r"no weights at gone\.pth"):
        build_backbone(cfg)


def test_timms_own_weights_that_cannot_be_had_are_an_error(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            raise FileNotFoundError("cannot find the requested files")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"no weights of test_resnet .*cannot find the requested"):
        build("test_resnet", "MODEL.TIMM.PRETRAINED", "True")


def test_timms_own_weights_are_asked_for_once(monkeypatch, tmp_path):
    create, asked = timm.create_model, []

    def count(name, pretrained=False, **kwargs):
        asked.append(pretrained)
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", count)
    build("test_resnet", "MODEL.TIMM.PRETRAINED", "True")
    assert sum(asked) == 1
    asked.clear()
    build("test_resnet")
    assert sum(asked) == 0


@pytest.mark.parametrize(
    ("opts", "warned"),
    [
        (SEEN, False),
        ([*SEEN, "INPUT.FORMAT", "BGR"], True),
        ([*SEEN, "MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"], True),
        ([*SEEN, "MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"], True),
    ],
)
def test_images_unlike_those_of_the_weights_are_warned_of(opts, warned, tmp_path, caplog):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING, "dpk_det"):
        build("test_resnet", *opts)  # from random weights whatever images will do
        assert not [x for x in caplog.messages if "PIXEL" in x]
        build("test_resnet", *opts, "MODEL.TIMM.WEIGHTS", tmp_path / "w.pth")
    right = "MODEL.PIXEL_MEAN to [127.5, 127.5, 127.5], MODEL.PIXEL_STD to [127.5, 127.5, 127.5]"
    assert bool([x for x in caplog.messages if right in x]) == warned


def test_images_may_have_one_channel(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    grey = ["MODEL.PIXEL_MEAN", "[127.5]", "MODEL.PIXEL_STD", "[127.5]", "INPUT.FORMAT", "L"]
    for weights in ("", tmp_path / "w.pth"):  # of which timm adds up the channels
        backbone = build("test_resnet", *grey, "MODEL.TIMM.WEIGHTS", weights)
        assert backbone(images()[:, :1])["res3"].shape[-2:] == (8, 12)


# ------------------------------------------------------------------ norms and freezing


@torch.no_grad()
@pytest.mark.parametrize(
    ("norm", "kind"), [("FrozenBN", FrozenBatchNormAct2d), ("SyncBN", nn.SyncBatchNorm)]
)
def test_norms_are_turned_with_their_activations(norm, kind):
    plain = disturb_norms(build("test_efficientnet")).eval()
    turned = build("test_efficientnet", "MODEL.TIMM.NORM", norm).eval()
    found = turned.load_state_dict(plain.state_dict(), strict=False)
    assert not found.missing_keys
    norms = [m for m in turned.modules() if isinstance(m, kind)]
    assert len(norms) == sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules()) > 0
    assert not any(isinstance(m, nn.BatchNorm2d) for m in turned.modules())
    for given, same in zip(turned(images()).values(), plain(images()).values(), strict=True):
        torch.testing.assert_close(given, same, rtol=1e-4, atol=1e-5)


def test_an_unknown_norm_is_an_error():
    with pytest.raises(UserError, match=r"MODEL\.TIMM\.NORM named 'FrozenBn': did you mean 'Froz"):
        build("test_resnet", "MODEL.TIMM.NORM", "FrozenBn")


# The names are those of timm's modules: what an image passes up to the map of that stride.
@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen"),
    [
        ("test_resnet", 0, ()),
        ("test_resnet", 1, ("conv1.", "bn1.")),
        ("test_resnet", 2, ("conv1.", "bn1.", "layer1.")),
        ("test_resnet", 3, ("conv1.", "bn1.", "layer1.", "layer2.")),
        ("test_convnext", 1, ()),  # has no map of stride 2
        ("test_convnext", 2, ("stem_", "stages_0.")),
        ("test_efficientnet", 2, ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")),
    ],
)
def test_freezing_reaches_up_to_the_map_of_its_stride(name, freeze_at, frozen):
    body = build(name, "MODEL.BACKBONE.FREEZE_AT", freeze_at).body
    before = {key: x.clone() for key, x in body.state_dict().items() if key.endswith("_mean")}
    sum(x.square().sum() for x in body(images())).backward()
    learning = {key for key, p in body.named_parameters() if p.grad is not None}
    moving = {key for key, x in before.items() if not torch.equal(x, body.state_dict()[key])}
    free = build(name).body
    assert not frozen or any(key.startswith(frozen) for key, _ in free.named_parameters())
    for found, wanted in ((learning, free.named_parameters()), (moving, before.items())):
        assert found == {key for key, _ in wanted if not key.startswith(frozen or "?")}


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("name", "kwargs", "opts", "message"),
    [
        ("mobilnetv2_100", {}, [], r"no network named 'mobilnetv2_100' .*mean 'mobilenetv2_100'"),
        (
            "",
            {},
            [],
            r"no network named '' \(MODEL\.TIMM\.NAME\): timm\.list_models\(\) lists them",
        ),
        ("test_resnet.nosuch", {}, [], r"cannot build test_resnet\.nosuch .*tag"),
        (
            "test_resnet",
            {"nosuch": 1},
            [],
            r"cannot build test_resnet .*nosuch.*MODEL\.TIMM\.KWARGS",
        ),
        (
            "test_resnet",
            {},
            ["MODEL.TIMM.OUT_INDICES", "[1, 5]"],
            r"OUT_INDICES is \[1, 5\], but test_resnet has maps 0 to 4, of strides 2, 4, 8, 16, 32",
        ),
        ("test_resnet", {}, ["MODEL.TIMM.OUT_INDICES", "[-6]"], r"OUT_INDICES is \[-6\]"),
        (
            "test_vit",
            {},
            ["MODEL.TIMM.OUT_INDICES", "[1, 5]"],
            r"OUT_INDICES have strides \[16, 16\]: choose one of each",
        ),
        (VIT, {}, [], r"does not take an image of 64 x 96 pixels \(.*224.*MODEL\.TIMM\.KWARGS"),
        (
            "hrnet_w18_small",
            {},
            ["MODEL.BACKBONE.FREEZE_AT", 2],
            r"hrnet_w18_small's map of stride 4 ends: set MODEL\.BACKBONE\.FREEZE_AT to 0",
        ),
    ],
)
def test_mistakes_are_named(name, kwargs, opts, message):
    with pytest.raises(UserError, match=message):
        build(name, *opts, kwargs=kwargs)


class _Body(nn.ModuleList):
    """One convolution of stride 4 and 4 channels, whatever it says."""

    def __init__(self, *info):
        super().__init__([nn.Conv2d(3, 4, 3, stride=4)])
        self.feature_info = FeatureInfo(list(info), tuple(range(len(info))))

    def forward(self, x):
        return [conv(x) for conv in self]


@pytest.mark.parametrize(
    ("stride", "channels", "message"),
    [
        (4, 5, r"makes a map of \(1, 4, 16, 24\) .* stride 4 promises \(1, 5, 16, 24\)"),
        (2, 4, r"makes a map of \(1, 4, 16, 24\) .* stride 2 promises \(1, 4, 32, 48\)"),
        (6, 4, r"have strides \[6\]: choose one of each, all powers of two"),
    ],
)
def test_a_network_that_does_not_do_as_it_says_is_an_error(stride, channels, message):
    info = {"module": "0", "num_chs": 4, "reduction": 4}
    assert TimmBackbone(_Body(info), "fake")(images())["res2"].shape == (2, 4, 16, 24)
    with pytest.raises(UserError, match=rf"fake.*{message}"):
        TimmBackbone(_Body(info | {"num_chs": channels, "reduction": stride}), "fake")


def test_a_network_without_feature_maps_is_an_error(monkeypatch):
    create = timm.create_model

    def refuse(name, features_only=False, **kwargs):
        if features_only:
            raise RuntimeError("features_only not implemented for this.")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(
        UserError, match=r"cannot build test_vit for its feature maps \(features_on"
    ):
        build("test_vit")


def test_a_neck_on_maps_that_the_network_lacks_is_an_error():
    in_features = ["MODEL.FPN.IN_FEATURES", "['res2', 'res4']"]
    with pytest.raises(
        UserError, match=r"IN_FEATURES is .*the network below has res4 \(stride 16\)"
    ):
        build("test_vit", *in_features, neck=True)
