"""The CIFAR networks: sizes as published, shapes, and what a network computes."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from dpk_det.config.loading import load_config
from dpk_det.errors import UserError
from dpk_det.modeling.cifar import NETWORKS, build_cifar_backbone

# Parameters with a classifier of 100 classes, counted once in the networks of CRD's code; rounded
# they are the figures of the literature's tables (0.28, 0.86, 1.74, 7.43 M, ...).
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
# of an image of 32 x 32 pixels: channels and side of each map
SHAPES = {
    "resnet20": [(16, 32), (32, 16), (64, 8)],
    "resnet8x4": [(64, 32), (128, 16), (256, 8)],
    "wrn_40_1": [(16, 32), (32, 16), (64, 8)],
    "wrn_16_2": [(32, 32), (64, 16), (128, 8)],
    "vgg8": [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)],
    "mobilenetv2": [(12, 16), (16, 8), (48, 4), (160, 2), (1280, 2)],
    "shufflenetv1": [(240, 16), (480, 8), (960, 4)],
    "shufflenetv2": [(116, 16), (232, 8), (464, 4), (1024, 4)],
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_every_network_has_its_published_size():
    assert PARAMETERS.keys() == NETWORKS.keys()
    for name, expected in PARAMETERS.items():
        network = NETWORKS[name]()
        channels = list(network.output_shape().values())[-1].channels
        assert count(network) + 100 * (channels + 1) == expected, name


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_resnets_are_those_of_the_paper_but_for_two_shortcuts(depth, millions):
    # He et al. 2016, table 6, with ten classes; their shortcuts have no weights
    network = NETWORKS[f"resnet{depth}"]()
    shortcuts = sum(
        count(m) for name, m in network.named_modules() if name.endswith("0.downsample")
    )
    assert round((count(network) - shortcuts + 65 * 10) / 1e6, 2) == pytest.approx(millions)


@pytest.mark.parametrize("name", SHAPES)
def test_maps_are_what_the_network_says(name):
    network = NETWORKS[name]()
    maps = network(torch.randn(2, 3, 32, 32))
    assert [(m.shape[1], m.shape[2]) for m in maps.values()] == SHAPES[name]
    for key, spec in network.output_shape().items():
        assert maps[key].shape == (2, spec.channels, 32 // spec.stride, 32 // spec.stride)
    assert list(maps) == list(network.output_shape())


@pytest.mark.parametrize("name", SHAPES)
def test_every_weight_learns(name):
    network = NETWORKS[name]()
    last = list(network(torch.randn(4, 3, 32, 32)).values())[-1]
    (last * torch.randn_like(last)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_the_classifier_reads_a_map_without_negative_values(name):
    torch.manual_seed(0)
    last = list(NETWORKS[name]()(torch.randn(2, 3, 32, 32)).values())[-1]
    assert last.min() == 0


def test_wide_resnets_add_what_came_in_before_its_norm_where_the_width_stays():
    torch.manual_seed(0)
    stage = NETWORKS["wrn_16_2"]().eval().stage2
    x = torch.randn(1, 32, 8, 8)
    with torch.no_grad():
        first = stage[0](x)
        active = stage[0].bn1(x).clamp(min=0)
        residual = stage[0].conv2(stage[0].bn2(stage[0].conv1(active)).clamp(min=0))
        torch.testing.assert_close(first, residual + stage[0].shortcut(active))
        nn.init.zeros_(stage[1].conv2.weight)
        torch.testing.assert_close(stage[1](first), first)


def test_a_shuffled_unit_mixes_the_groups():
    block = NETWORKS["shufflenetv1"]().eval().stage2[1]
    x = torch.zeros(1, 480, 4, 4)
    x[:, :160] = torch.rand(1, 160, 4, 4) + 1  # the first of three groups
    with torch.no_grad():
        changed = (block.layers(x) - block.layers(torch.zeros_like(x))).abs().amax((0, 2, 3))
    assert all(group.max() > 0 for group in changed.chunk(3))


def test_config_builds_it_and_an_unknown_name_is_answered_with_the_nearest():
    cfg = load_config("", ["MODEL.BACKBONE.NAME", "build_cifar_backbone"])
    assert build_backbone(cfg).output_shape()["stage3"] == ShapeSpec(channels=64, stride=4)
    cfg.MODEL.CIFAR.NAME = "resnet65"
    with pytest.raises(UserError, match=r"MODEL.CIFAR.NAME.*did you mean 'resnet56'"):
        build_backbone(cfg)
    with pytest.raises(UserError, match="three channels, not 1"):
        build_cifar_backbone(load_config(""), ShapeSpec(channels=1))
