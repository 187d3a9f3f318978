"""torchvision's networks as backbones, against the networks themselves."""

import logging
from urllib.error import URLError

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import nn
from torchvision import models

from dpk_det.config import load_config, plain_architecture
from dpk_det.errors import UserError

SMALLEST = "shufflenet_v2_x0_5"
SEEN = ["MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]", "INPUT.FORMAT", "RGB"]
SEEN += ["MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]"]  # what torchvision's networks were shown


def config(name, *opts, kwargs=(), neck=False):
    builder = "build_torchvision_fpn_backbone" if neck else "build_torchvision_backbone"
    cfg = load_config(
        "",
        [
            *("MODEL.BACKBONE.NAME", builder, "MODEL.BACKBONE.FREEZE_AT", "0"),
            *("MODEL.TORCHVISION.NAME", name, "MODEL.FPN.OUT_CHANNELS", "8"),
            *(str(opt) for opt in opts),
        ],
    )
    cfg.MODEL.TORCHVISION.KWARGS.update(kwargs)
    return cfg


def build(*args, **kwargs):
    torch.manual_seed(0)
    return build_backbone(config(*args, **kwargs))


def images(height=64, width=96):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def reference(name, backbone, *paths, kwargs=()):
    """torchvision's network with a backbone's weights, and what is made at these paths."""
    network, made = models.get_model(name, weights=None, **dict(kwargs)), {}
    absent = network.load_state_dict(backbone.body.state_dict(), strict=False)
    assert not absent.unexpected_keys
    for path in paths:
        network.get_submodule(path).register_forward_hook(
            lambda _, inputs, output, path=path: made.__setitem__(path, output)
        )
    return network, made


# ------------------------------------------------------------------ maps


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("resnet50", ["layer1", "layer2", "layer3", "layer4"]),
        # the last is the convolution before the classifier
        ("mobilenet_v3_small", ["features.1", "features.3", "features.8", "features.12"]),
        ("efficientnet_b0", ["features.2", "features.3", "features.5", "features.8"]),
        ("regnet_y_400mf", [f"trunk_output.block{i}" for i in (1, 2, 3, 4)]),
        (SMALLEST, ["maxpool", "stage2", "stage3", "conv5"]),
    ],
)
@torch.no_grad()
def test_the_maps_are_the_ends_of_the_networks_stages(name, paths):
    backbone = build(name).eval()
    network, made = reference(name, backbone, *paths)
    network.eval()(images())
    maps = backbone(images())
    assert list(maps) == list(backbone.output_shape()) == ["res2", "res3", "res4", "res5"]
    for path, given, spec in zip(
        paths, maps.values(), backbone.output_shape().values(), strict=True
    ):
        assert torch.equal(given, made[path])
        assert given.shape == (2, spec.channels, 64 // spec.stride, 96 // spec.stride)
    assert backbone.size_divisibility == 32
    assert backbone(images(160, 64))["res5"].shape[2:] == (5, 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenet_v2", [(4, 24), (8, 32), (16, 96), (32, 1280)]),
        # neither the norm that stands before a stage's first convolution
        ("convnext_tiny", [(4, 96), (8, 192), (16, 384), (32, 768)]),
        # nor the wide layers of its first block
        ("efficientnet_v2_s", [(4, 48), (8, 64), (16, 160), (32, 1280)]),
        ("vgg11_bn", [(4, 256), (8, 512), (16, 512), (32, 512)]),
        ("densenet121", [(4, 256), (8, 512), (16, 1024), (32, 1024)]),
        ("mnasnet0_5", [(4, 16), (8, 24), (16, 48), (32, 1280)]),
        ("swin_t", [(32, 768)]),  # before that, maps have their channels last
    ],
)
def test_maps_are_found_by_stride_in_networks_of_other_families(name, expected):
    with torch.device("meta"):
        shapes = build(name).output_shape()
    assert [(spec.stride, spec.channels) for spec in shapes.values()] == expected
    assert list(shapes) == ["res2", "res3", "res4", "res5"][-len(expected) :]


def test_maps_are_chosen_by_name_and_more_arguments_go_to_torchvision():
    backbone = build(SMALLEST, "MODEL.TORCHVISION.OUT_FEATURES", "['res4', 'res1']")
    assert list(backbone(images())) == list(backbone.output_shape()) == ["res1", "res4"]
    assert not any("stage4" in name for name in backbone.state_dict())  # it leads to neither
    with torch.device("meta"):
        backbone = build("mobilenet_v2", kwargs={"width_mult": 0.5})
    assert backbone.output_shape()["res4"].channels == 48


def test_the_neck_stands_on_the_maps_that_it_names():
    in_features = ["MODEL.FPN.IN_FEATURES", "['res3', 'res4']"]
    fpn = build(SMALLEST, *in_features, "MODEL.FPN.TOP_BLOCK", "p6p7_p5", neck=True)
    assert list(fpn.output_shape()) == list(fpn(images())) == ["p3", "p4", "p5", "p6"]
    assert list(fpn.bottom_up.output_shape()) == ["res3", "res4"]
    sum(x.sum() for x in fpn(images()).values()).backward()  # no weight is left without a gradient
    assert all(p.grad is not None for p in fpn.parameters())


# ------------------------------------------------------------------ modes


@pytest.mark.parametrize(
    ("name", "kwargs", "key", "path"),
    [
        ("efficientnet_b0", {}, "res5", "features.8"),  # chance is in modules
        ("densenet121", {"drop_rate": 0.3}, "res4", "features.denseblock3"),  # in the graph
    ],
)
@torch.no_grad()
def test_training_and_evaluation_are_those_of_the_network(name, kwargs, key, path):
    backbone = build(name, kwargs=kwargs)
    assert all(module.training for module in backbone.modules())
    network, made = reference(name, backbone, path, kwargs=kwargs)
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.num_batches_tracked or m.running_mean.any() for m in norms)  # by being built
    seen = {True: [], False: []}
    for mode in (True, False, True):
        for seed in (1, 2):
            for model in (network, backbone):
                torch.manual_seed(seed)
                maps = model.train(mode)(images())
            assert torch.equal(maps[key], made[path])
            seen[mode].append(maps[key])
    assert torch.equal(*seen[False]) and not torch.equal(*seen[True][:2])
    state = network.state_dict()
    for name, value in backbone.body.state_dict().items():  # statistics have moved alike
        assert torch.equal(state[name], value)
    assert all(m.num_batches_tracked == 4 for m in norms)


def test_all_up_to_a_map_is_frozen():
    backbone = build("resnet18", "MODEL.BACKBONE.FREEZE_AT", 2)
    frozen = ("body.conv1", "body.bn1", "body.layer1")
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    for name, module in backbone.named_modules():
        if "bn" in name or "downsample.1" in name:
            expected = FrozenBatchNorm2d if name.startswith(frozen) else nn.BatchNorm2d
            assert type(module) is expected, name
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.train()(images())
    moved = {k for k, v in backbone.state_dict().items() if not torch.equal(before[k], v)}
    assert moved and not any(name.startswith(frozen) for name in moved)
    untouched = build("convnext_tiny", "MODEL.BACKBONE.FREEZE_AT", 1)  # has no map of stride 2
    assert all(p.requires_grad for p in untouched.parameters())


def test_freezing_takes_weights_that_are_no_modules_along():
    backbone = build("convnext_tiny", "MODEL.BACKBONE.FREEZE_AT", 2)
    state = {name: p.requires_grad for name, p in backbone.named_parameters()}
    assert not state["body.features.1.2.layer_scale"] and state["body.features.2.0.weight"]
    assert not state["body.features.0.0.weight"] and state["body.features.3.0.layer_scale"]


@pytest.mark.parametrize(("norm", "kind"), [("FrozenBN", FrozenBatchNorm2d), ("SyncBN", None)])
@torch.no_grad()
def test_norms_are_turned(norm, kind):
    plain = build(SMALLEST).eval()
    turned = build(SMALLEST, "MODEL.TORCHVISION.NORM", norm).eval()
    norms = [m for m in turned.modules() if isinstance(m, kind or nn.SyncBatchNorm)]
    assert norms and not any(type(m) is nn.BatchNorm2d for m in turned.modules())
    turned.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(turned(images()), plain(images()))


# ------------------------------------------------------------------ weights


@pytest.fixture
def weights(monkeypatch):
    """What is downloaded instead, and the addresses that were asked for."""
    torch.manual_seed(5)
    state, asked = models.get_model(SMALLEST, weights=None).state_dict(), []

    def load(url, *args, **kwargs):
        asked.append(url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    return state, asked


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"])
def test_weights_are_torchvisions_of_that_name(weights, name, caplog):
    state, asked = weights
    cfg = config(SMALLEST, "MODEL.TORCHVISION.WEIGHTS", name, *SEEN)
    loaded = build_backbone(cfg).body.state_dict()
    assert asked == [models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url]
    assert loaded and all(torch.equal(value, state[key]) for key, value in loaded.items())
    assert set(state) - set(loaded) == {"fc.weight", "fc.bias"}
    assert not caplog.records
    build_backbone(plain_architecture(cfg))  # a checkpoint will fill it
    assert len(asked) == 1


def test_other_pixels_than_the_weights_were_trained_on_are_told(weights, caplog):
    with caplog.at_level(logging.WARNING):
        build(SMALLEST, "MODEL.TORCHVISION.WEIGHTS", "IMAGENET1K_V1")
    assert "[123.675, 116.28, 103.53]" in caplog.text and f"torchvision's {SMALLEST}" in caplog.text


def test_weights_that_cannot_be_had_are_an_error(monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(UserError, match=r"cannot be had .*no network.*put https.*TORCH_HOME"):
        build(SMALLEST, "MODEL.TORCHVISION.WEIGHTS", "IMAGENET1K_V1", *SEEN)


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("name", "kwargs", "opts", "message"),
    [
        ("resnet81", {}, [], r"no network .*MODEL\.TORCHVISION\.NAME\) .*did you mean 'resnet18'"),
        ("fasterrcnn_resnet50_fpn", {}, [], "no network of torchvision's"),  # classifiers alone
        (
            SMALLEST,
            {},
            ["MODEL.TORCHVISION.WEIGHTS", "IMAGENET1K_V9"],
            r"no weights of torchvision's shufflenet.*did you mean 'IMAGENET1K_V1'",
        ),
        (
            SMALLEST,
            {},
            ["MODEL.TORCHVISION.OUT_FEATURES", "['res6']"],
            r"OUT_FEATURES is \['res6'\], but .* has res1 \(stride 2\), .*choose from these",
        ),
        ("squeezenet1_1", {}, [], "has no maps that keep the geometry .*choose another network"),
        (SMALLEST, {"nosuch": 1}, [], r"cannot build shuffle.*nosuch.*MODEL\.TORCHVISION\.KWARGS"),
        (SMALLEST, {}, ["MODEL.TORCHVISION.NORM", "FrozenBM"], "did you mean 'FrozenBN'"),
        (SMALLEST, {}, ["MODEL.PIXEL_MEAN", "[1.0]"], "three channels, not 1"),
    ],
)
def test_mistakes_are_named(name, kwargs, opts, message):
    with pytest.raises(UserError, match=message):
        build(name, *opts, kwargs=kwargs)


def test_a_network_of_one_size_is_refused():
    with pytest.raises(UserError, match=r"vit_b_16 does not take an image of 64 x 96 pixels"):
        with torch.device("meta"):
            build("vit_b_16")
