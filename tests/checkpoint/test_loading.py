"""Loading weights: torchvision's layout, addresses, and what does not fit."""

import argparse
import pickle
import shutil

import iopath.common.file_io
import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone.resnet import BasicStem
from safetensors.torch import save
from torch import nn

from dpk_det.checkpoint.loading import load_backbone_weights, load_weights, load_weights_strictly
from dpk_det.config.loading import load_config
from dpk_det.errors import UserError


def resnet(depth):
    """torchvision's, with statistics and affines as training leaves them."""
    torch.manual_seed(depth)
    model = getattr(torchvision.models, f"resnet{depth}")()
    randomize_norms(model)
    return model.eval()


def randomize_norms(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.uniform_(module.bias, -0.5, 0.5)


def resnet_config(depth):
    cfg = load_config(
        "",
        [
            *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.DEVICE", "cpu"),
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
            *("MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
            *("MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
            *("MODEL.FPN.OUT_CHANNELS", "16"),
            *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"),
            *("MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']"),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
            *("MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3']"),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
            *("MODEL.ROI_BOX_HEAD.NUM_FC", "1", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
            *("MODEL.RESNETS.STRIDE_IN_1X1", "False", "MODEL.RESNETS.DEPTH", str(depth)),
        ],
    )
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return cfg


def uninitialized(cfg):
    """The backbone, without the time that random weights take."""
    with torch.device("meta"):
        return build_backbone(cfg).to_empty(device="cpu")


@pytest.fixture
def http(monkeypatch, tmp_path):
    """Addresses asked for; what any of them gives lies in ``http.file``.

    A fake, because tests have no network.
    """

    class Http(list):
        file = tmp_path / "downloaded.pth"

    asked = Http()

    def download(url, folder, filename):
        asked.append(url)
        return shutil.copy(asked.file, f"{folder}/{filename}")

    monkeypatch.setattr(iopath.common.file_io, "download", download)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return asked


# ------------------------------------------------------------------ torchvision's layout


def test_torchvisions_resnet18_gives_the_detectors_backbone_the_same_output(tmp_path):
    reference = resnet(18)
    torch.save(reference.state_dict(), tmp_path / "r18.pth")
    model = build_model(resnet_config(18)).eval()  # its norm is FrozenBN
    found = load_weights(model, str(tmp_path / "r18.pth"))

    assert not [name for name in found.missing_keys if "bottom_up" in name]
    assert not found.unexpected_keys and not found.incorrect_shapes
    assert [name for name in found.missing_keys if "fpn_lateral2" in name]  # not in the file

    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        trunk = nn.Sequential(*list(reference.children())[:-2])
        expected = trunk(image)
        res5 = model.backbone.bottom_up(image)["res5"]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(res5, expected, rtol=1e-5, atol=1e-5)


# timm's ResNets have the very same names, so that this holds for its files too.
@pytest.mark.parametrize("depth", [34, 50, 101])
def test_torchvisions_deeper_resnets_fill_the_backbone_and_give_the_same_maps(depth, tmp_path):
    reference = resnet(depth)
    torch.save(reference.state_dict(), tmp_path / "r.pth")
    backbone = uninitialized(resnet_config(depth)).eval()
    found = load_weights(backbone, str(tmp_path / "r.pth"))
    assert not [name for name in found.missing_keys if "bottom_up" in name]
    assert not found.unexpected_keys and not found.incorrect_shapes
    x = image = torch.randn(1, 3, 64, 32)
    expected = {}
    with torch.no_grad():
        for name, module in list(reference.named_children())[:-2]:
            x = module(x)
            expected[name.replace("layer", "")] = x
        maps = backbone.bottom_up(image)
    assert len(maps) == 4
    for name, given in maps.items():
        same = expected[str(int(name[3]) - 1)]
        torch.testing.assert_close(given, same, rtol=1e-4, atol=1e-5 * same.abs().max().item())


def classifier(tiny_images, **more):
    """A ResNet-18 of Detectron2's as a classifier of torchvision's 1000 classes."""
    opts = {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.OUT_FEATURES": "['res2', 'res3', 'res4', 'res5']",
        "MODEL.CLASSIFIER.NUM_CLASSES": 1000,
        **more,
    }
    return tiny_images.build("plain", *(x for pair in opts.items() for x in pair)).eval()


def test_a_classifier_takes_torchvisions_classifier_along(tiny_images, tmp_path):
    reference, path = resnet(18), str(tmp_path / "r18.pth")
    torch.save(reference.state_dict(), path)
    model = classifier(tiny_images)
    load_weights_strictly(model, path, "KEY")
    images = torch.randint(256, (2, 3, 64, 64))
    with torch.no_grad():
        want = reference((images - model.pixel_mean) / model.pixel_std)
        torch.testing.assert_close(model({"images": images}), want, rtol=1e-4, atol=1e-5)
    other = classifier(tiny_images, **{"MODEL.CLASSIFIER.NUM_CLASSES": 10})
    with pytest.raises(UserError, match=r"of another shape in the file, head.bias, head.weight"):
        load_weights_strictly(other, path, "KEY")


def test_a_classifier_starts_a_detectors_backbone_by_one_line_and_the_other_way(
    tiny_images, tmp_path
):
    source, path = classifier(tiny_images), str(tmp_path / "classifier.pth")
    randomize_norms(source)
    torch.save({"model": source.state_dict() | {"distiller.x": torch.ones(1)}}, path)
    detector = build_model(resnet_config(18)).eval()
    found = load_backbone_weights(detector, path)
    assert not found.missing_keys and not found.incorrect_shapes
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            detector.backbone.bottom_up(x)["res5"], source.backbone(x)["res5"]
        )

    torch.save({"model": detector.state_dict()}, path)
    again = classifier(tiny_images, **{"MODEL.CLASSIFIER.NUM_CLASSES": 10})
    load_backbone_weights(again, path)
    with torch.no_grad():
        torch.testing.assert_close(again.backbone(x), source.backbone(x))


def timm_fpn(name, *opts):
    return load_config(
        "",
        [
            *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", name),
            *("MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
            *("MODEL.FPN.OUT_CHANNELS", "8", *opts),
        ],
    )


def test_torchvisions_mobilenetv2_gives_timms_the_same_maps(tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.mobilenet_v2()
    randomize_norms(reference)
    torch.save(reference.eval().state_dict(), tmp_path / "mv2.pth")
    backbone = build_backbone(timm_fpn("mobilenetv2_100")).eval()
    found = load_weights(backbone, str(tmp_path / "mv2.pth"))
    assert not found.unexpected_keys and not found.incorrect_shapes
    missing = [name for name in found.missing_keys if "bottom_up" in name]
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = image = torch.randn(1, 3, 64, 96)
    expected = {}
    with torch.no_grad():
        for i, layer in enumerate(reference.features):
            x = layer(x)
            expected[i] = x  # of each stride the last, the network's last convolution left out
        maps = backbone.bottom_up(image)
    for name, i in {"res2": 3, "res3": 6, "res4": 13, "res5": 17}.items():
        assert expected[i].abs().max() > 0.1
        torch.testing.assert_close(maps[name], expected[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "file", "why"),
    [
        (50, "resnet101", r"255 do not fit, res4\.10\.conv1\.norm\.bias"),  # are left over
        (50, "resnext50_32x4d", "do not fit, .*res2"),  # of another shape
        (18, "resnet34", "do not fit, "),
        (34, "resnet18", "do not fit, "),
        (18, "mobilenet_v2", "do not fit, .*res2"),
    ],
)
def test_another_networks_imagenet_file_is_refused(depth, file, why, tmp_path):
    torch.save(getattr(torchvision.models, file)().state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w\.pth are not of this backbone \(.*{why}") as e:
        load_weights(uninitialized(resnet_config(depth)), str(tmp_path / "w.pth"))
    assert "give MODEL.WEIGHTS those of the depth, widths and stem" in str(e.value)


def test_another_norm_than_the_files_is_refused(tmp_path):
    torch.save(resnet(18).state_dict(), tmp_path / "w.pth")
    cfg = resnet_config(18)
    cfg.MODEL.RESNETS.NORM = "GN"
    with pytest.raises(UserError, match=r"40 do not fit, .*norm\.running_mean"):
        load_backbone_weights(_Detector(uninitialized(cfg)), str(tmp_path / "w.pth"))


class _Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def test_a_file_of_a_deep_stem_is_refused(tmp_path):
    state = resnet(18).state_dict()  # as of timm's resnet18d
    del state["conv1.weight"]
    state |= {f"conv1.{i}.weight": torch.ones(8, 8, 3, 3) for i in (0, 3, 6)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"4 do not fit.*stem\.conv1\.0\.weight"):
        load_weights(build_backbone(resnet_config(18)), str(tmp_path / "w.pth"))


def test_a_resnet_that_ends_early_takes_what_it_has(tmp_path):
    reference = resnet(18)
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    cfg = resnet_config(18)
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4"]
    backbone = build_backbone(cfg)
    load_weights(backbone, str(tmp_path / "w.pth"))
    taken = backbone.bottom_up.res4[1].conv2.weight
    assert torch.equal(taken, reference.layer3[1].conv2.weight)


def test_strides_in_the_1x1_convolutions_are_refused_for_torchvisions_weights(tmp_path):
    torch.save(resnet(50).state_dict(), tmp_path / "w.pth")
    cfg = resnet_config(50)
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
    with pytest.raises(UserError, match=r"set MODEL\.RESNETS\.STRIDE_IN_1X1 to False"):
        load_weights(uninitialized(cfg), str(tmp_path / "w.pth"))


def test_a_resnets_file_for_timms_networks_is_sent_to_timms_key(tmp_path):
    torch.save(resnet(18).state_dict(), tmp_path / "w.pth")
    backbone = build_backbone(timm_fpn("mobilenetv2_050"))
    with pytest.raises(UserError, match=r"do not fit, .*body.*by MODEL\.TIMM\.WEIGHTS"):
        load_weights(backbone, str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match=r"not of this backbone \(none fits\)"):
        load_weights(nn.Linear(1, 1), str(tmp_path / "w.pth"))


def test_a_torchvision_name_becomes_torchvisions_address(http):
    torch.save({"weight": torch.ones(1, 1), "bias": torch.ones(1)}, http.file)
    model = nn.Linear(1, 1)
    load_weights(model, "torchvision://ResNet18_Weights.IMAGENET1K_V1")
    assert set(http) == {"https://download.pytorch.org/models/resnet18-f37072fd.pth"}
    assert model.weight.item() == 1


@pytest.mark.parametrize("name", ["ResNet18_Weights.NO_SUCH", "NoNet_Weights.X", "resnet18", ""])
def test_a_name_that_torchvision_lacks_is_an_error(name, http):
    with pytest.raises(UserError, match=f"no weights named {name}: write ResNet18_Weights"):
        load_weights(nn.Linear(1, 1), f"torchvision://{name}")
    assert http == []


# ------------------------------------------------------------------ where weights lie


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("https://example.org/a/w.pth", "https://example.org/a/w.pth"),
        ("detectron2://a/w.pth", "https://dl.fbaipublicfiles.com/detectron2/a/w.pth"),
    ],
)
def test_weights_come_from_addresses_too(path, url, http):
    torch.save({"model": {"weight": torch.ones(1, 1), "bias": torch.ones(1)}}, http.file)
    model = nn.Linear(1, 1)
    load_weights_strictly(model, path, "MODEL.WEIGHTS")
    assert set(http) == {url}
    assert model.weight.item() == 1


def test_no_path_loads_nothing():
    model = nn.Linear(1, 1)
    before = model.weight.item()
    assert load_weights(model, "") is None
    assert model.weight.item() == before


@pytest.mark.parametrize("load", [load_weights, load_weights_strictly])
def test_an_absent_file_is_named_with_the_key_to_mend(load, tmp_path):
    path = str(tmp_path / "none.pth")
    with pytest.raises(UserError, match=rf"no weights at {path}: give SOME\.KEY an existing"):
        load(nn.Linear(1, 1), path, "SOME.KEY")


# ------------------------------------------------------------------ what does not fit


def test_loading_takes_what_matches_and_says_what_did_not(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": {"0.weight": torch.full((2, 2), 3.0), "1.weight": torch.ones(5, 5)}}, path)
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    found = load_weights(model, str(path))
    assert torch.equal(model[0].weight, torch.full((2, 2), 3.0))
    assert found.incorrect_shapes == [("1.weight", (5, 5), (2, 2))]
    assert "1.bias" in found.missing_keys


def test_of_a_detectors_checkpoint_only_the_bottom_up_network_is_taken(tiny):
    model, other = tiny.build("plain", seed=1), tiny.build("plain", seed=2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    path = tiny.plain.with_name("other.pth")
    torch.save({"model": other.state_dict()}, path)
    found = load_backbone_weights(model, str(path))
    assert not found.missing_keys and not found.unexpected_keys
    for key, value in model.state_dict().items():
        expected = other.state_dict() if key.startswith("backbone.bottom_up.") else before
        assert torch.equal(value, expected[key]), key
    torch.save(other.backbone.bottom_up.state_dict(), path)  # that network alone
    model.backbone.bottom_up.load_state_dict(
        {
            k.removeprefix("backbone.bottom_up."): v
            for k, v in before.items()
            if k.startswith("backbone.bottom_up.")
        }
    )
    load_backbone_weights(model, str(path))
    for key, value in other.backbone.bottom_up.state_dict().items():
        assert torch.equal(model.backbone.bottom_up.state_dict()[key], value)
    assert load_backbone_weights(model, "") is None
    torch.save({"model": {"x": torch.ones(1)}}, path)
    with pytest.raises(UserError, match=r"other\.pth are of another backbone: \d+ of its \d+ "):
        load_backbone_weights(model, str(path))
    with pytest.raises(UserError, match=r"give MODEL\.BACKBONE_WEIGHTS an existing"):
        load_backbone_weights(model, "none.pth")


def test_training_starts_with_the_backbone_that_the_config_names(tiny, tmp_path):
    from dpk_det.engine import DistillTrainer

    other = tiny.build("plain", seed=3)
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    cfg = tiny.cfg(
        "plain", "MODEL.BACKBONE_WEIGHTS", tmp_path / "other.pth", "OUTPUT_DIR", tmp_path / "out"
    )
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=False)
    state, name = trainer.model.state_dict(), "backbone.bottom_up.stem.conv1.weight"
    assert torch.equal(state[name], other.state_dict()[name])
    name = "roi_heads.box_predictor.cls_score.weight"
    assert not torch.equal(state[name], other.state_dict()[name])


def test_strict_loading_lets_pass_what_is_no_weight_of_a_detector(tmp_path):
    path = tmp_path / "w.pth"
    extra = ("pixel_mean", "anchor_generator.cell_anchors.0", "distiller.x", "num_batches_tracked")
    state = {"weight": torch.ones(1, 1), "bias": torch.ones(1)}
    torch.save({"model": state | {name: torch.ones(1) for name in extra}}, path)
    model = nn.Linear(1, 1)
    load_weights_strictly(model, str(path), "KEY")
    assert model.bias.item() == 1


def test_the_model_zoos_pickles_of_numpy_arrays_load_strictly(tiny, tmp_path):
    state = torch.load(tiny.weights)["model"]
    content = {"model": {name: x.numpy() for name, x in state.items()}, "__author__": "zoo"}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps(content))
    model = tiny.build("teacher", seed=3)
    load_weights_strictly(model, str(path), "KEY")
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("load", [load_weights, load_weights_strictly])
def test_safetensors_load_as_a_checkpoint_does(tmp_path, load, monkeypatch):
    # a fake: older versions of torch, which read no such file, are not there
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load"))
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({"weight": torch.full((1, 1), 2.0), "bias": torch.full((1,), 3.0)}))
    model = nn.Linear(1, 1)
    load(model, str(path), "KEY")
    assert (model.weight.item(), model.bias.item()) == (2, 3)
    path.write_bytes(save({"weight": torch.ones(1, 1), "bias": torch.full((1,), torch.nan)}))
    with pytest.raises(
        UserError, match=r"The weight bias in .*w\.safetensors holds infinity or NaN"
    ):
        load(model, str(path), "KEY")


def test_safetensors_with_timms_names_start_a_backbone(tmp_path):
    state = resnet(18).state_dict()  # timm's names are the same
    (tmp_path / "w.safetensors").write_bytes(save(state))
    detector = build_model(resnet_config(18))
    found = load_backbone_weights(detector, str(tmp_path / "w.safetensors"))
    assert not found.missing_keys and not found.incorrect_shapes
    loaded = detector.backbone.bottom_up.res4[1].conv2.weight
    assert torch.equal(loaded, state["layer3.1.conv2.weight"])


def test_caffe2s_pickles_load_by_their_names_and_leave_momenta_alone(tmp_path):
    path = tmp_path / "R-18.pkl"
    blobs = {"conv1_w": np.full((4, 3, 7, 7), 2, np.float32)}
    blobs["conv1_w_momentum"] = np.full((4, 3, 7, 7), 3, np.float32)
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "text"}, protocol=2))
    model = nn.Module()
    model.stem = BasicStem(3, 4, norm="")
    load_weights(model, str(path))
    assert (model.stem.conv1.weight == 2).all()


# ------------------------------------------------------------------ what is no file of weights


@pytest.mark.parametrize("suffix", ["pkl", "pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"text" * 99, b"\x80\x04."])
def test_a_file_that_holds_no_weights_is_refused_in_a_sentence(tmp_path, suffix, content):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"w\.{suffix} is no checkpoint \(.*\): check KEY"):
        load_weights(nn.Linear(1, 1), str(path), "KEY")


def test_safetensors_that_are_cut_off_or_spoilt_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "w.safetensors"
    whole = save({"weight": torch.ones(1, 1), "bias": torch.ones(1)})
    for data in (whole[:-1], whole[:60], whole[:7], b"\xff" * 8 + whole[8:], whole + b"more"):
        path.write_bytes(data)
        with pytest.raises(
            UserError, match=r"w\.safetensors is no checkpoint \(.+\): check KEY"
        ) as e:
            load_weights_strictly(nn.Linear(1, 1), str(path), "KEY")
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "content", [3, [torch.ones(1)], {"model": 3}, {"model": {"a": "text"}}, {"weight": {"a": 1}}]
)
def test_a_checkpoint_without_weights_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth is no checkpoint"):
        load_weights(nn.Linear(1, 1), str(tmp_path / "w.pth"), "KEY")


def test_a_checkpoint_that_holds_objects_is_refused_by_their_name(tmp_path):
    torch.save({"model": {}, "args": argparse.Namespace(a=1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"it holds argparse\.Namespace, and weights alone"):
        load_weights(nn.Linear(1, 1), str(tmp_path / "w.pth"), "KEY")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("strictly", [False, True])
def test_weights_that_are_not_finite_are_refused_by_file_and_name(tmp_path, value, strictly):
    state = {"weight": torch.ones(1, 1), "bias": torch.tensor([value]), "n": torch.tensor(3)}
    torch.save({"model": state}, tmp_path / "w.pth")
    load = load_weights_strictly if strictly else load_weights
    with pytest.raises(UserError, match=r"The weight bias in .*w\.pth holds infinity or NaN"):
        load(nn.Linear(1, 1), str(tmp_path / "w.pth"), "KEY")


# ------------------------------------------------------------------ another network's weights


@pytest.mark.parametrize("load", [load_weights, load_backbone_weights])
def test_a_backbone_of_another_shape_is_refused(tiny, tmp_path, load):
    wider = tiny.build("plain", "MODEL.SMALL_RESNET.WIDTHS", "[4, 8, 16]")
    torch.save({"model": wider.state_dict()}, tmp_path / "w.pth")
    message = r"w\.pth are of another backbone: \d+ have another shape, \S*res4\.\S+ \(16,.*where"
    with pytest.raises(UserError, match=message):
        load(tiny.build("plain"), str(tmp_path / "w.pth"))


def test_a_backbone_that_is_for_the_most_part_absent_is_refused(tiny, tmp_path):
    state = {k: v for k, v in tiny.build("plain").state_dict().items() if "bottom_up" not in k}
    torch.save({"model": state}, tmp_path / "w.pth")
    message = r"another backbone: (\d+) of its \1 are not there, \S*res2"
    with pytest.raises(UserError, match=message):
        load_weights(tiny.build("plain"), str(tmp_path / "w.pth"))


def test_heads_of_other_classes_and_necks_of_another_width_are_left_out(tiny, tmp_path):
    opts = ("MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.FPN.OUT_CHANNELS", 8)
    torch.save({"model": tiny.build("plain", *opts).state_dict()}, tmp_path / "w.pth")
    found = load_weights(tiny.build("plain"), str(tmp_path / "w.pth"))
    assert not [name for name, *_ in found.incorrect_shapes if "bottom_up" in name]
    assert [name for name, *_ in found.incorrect_shapes if "cls_score" in name]
