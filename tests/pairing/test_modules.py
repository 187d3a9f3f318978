"""Learning from the maps of modules that no backbone lists, as a ViT's blocks, a DETR's encoder."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from fvcore.nn import giou_loss
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F

from dpk_det.data import made_up_batch
from dpk_det.distill import Distiller, Level
from dpk_det.errors import UserError
from dpk_det.pairing.attach import attach_distiller
from dpk_det.pairing.distil import attach_from_config, distil
from dpk_det.pairing.modules import Layout, find_layouts, look
from dpk_det.pairing.teacher import Teacher

ARGUMENTS = {"pkd": {}, "dpk": {"dim": 16, "heads": 2, "token_stride": 16}}


# ------------------------------------------------------------------ models


class Block(nn.Module):
    """A ViT's block as Detectron2 lays it out: (B, H, W, C) in and out."""

    def __init__(self, dim):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(dim, 2, 2 * dim, dropout=0, batch_first=True)

    def forward(self, x):
        return self.layer(x.flatten(1, 2)).reshape(x.shape)


class Vit(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 16, 16)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2)


class VitPyramid(Backbone):
    """A plain ViT and maps of three strides made of its last one, as ViTDet has them."""

    size_divisibility = 16

    def __init__(self, dim, depth):
        super().__init__()
        self.net = Vit(dim, depth)
        self.up = nn.ConvTranspose2d(dim, dim, 2, 2)
        self.lateral = nn.ModuleDict({name: Conv2d(dim, 16, 1) for name in self.output_shape()})

    def forward(self, x):
        p4 = self.net(x)
        p3 = self.up(p4)
        maps = {"p2": self.up(p3), "p3": p3, "p4": p4}
        return {name: self.lateral[name](x) for name, x in maps.items()}

    def output_shape(self):
        return {
            f"p{i}": ShapeSpec(channels=16, stride=stride) for i, stride in enumerate((4, 8, 16), 2)
        }


@BACKBONE_REGISTRY.register()
def build_tests_vit_pyramid(cfg, _):
    return VitPyramid(*cfg.MODEL.SMALL_RESNET.WIDTHS[:2])  # width and depth


def vit(tiny, dim, depth):
    opts = ("MODEL.BACKBONE.NAME", "build_tests_vit_pyramid")
    return tiny.build("plain", *opts, "MODEL.SMALL_RESNET.WIDTHS", [dim, depth, 1]).train()


class Detr(nn.Module):
    """A set predictor on Detectron2's ResNet; its encoder is no part of the backbone."""

    def __init__(self, dim, layers):
        super().__init__()
        stage = ResNet.make_stage(
            BasicBlock, 1, in_channels=8, out_channels=12, stride_per_block=[2]
        )
        self.backbone = ResNet(BasicStem(3, 8, "BN"), [stage], out_features=["res2"])
        self.project = Conv2d(12, dim, 1)
        layer = nn.TransformerEncoderLayer(dim, 2, 2 * dim, dropout=0)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoderLayer(dim, 2, 2 * dim, dropout=0)
        self.queries = nn.Embedding(5, dim)
        self.classes, self.boxes = nn.Linear(dim, 3), nn.Linear(dim, 4)
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 110.0))
        self.register_buffer("pixel_std", torch.full((3, 1, 1), 60.0))

    def preprocess_image(self, batch):
        images = [(x["image"] - self.pixel_mean) / self.pixel_std for x in batch]
        return ImageList.from_tensors(images, 16)

    def forward(self, batch):
        images = self.preprocess_image(batch)
        x = self.project(self.backbone(images.tensor)["res2"])
        memory = self.encoder(x.flatten(2).permute(2, 0, 1))  # (H W, B, C)
        queries = self.queries.weight[:, None].expand(-1, len(batch), -1)
        found = self.decoder(queries, memory).transpose(0, 1)
        corners = self.boxes(found).sigmoid()
        corners = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1) * 48
        logits = self.classes(found)
        if self.training:
            return self.losses(logits, corners, [x["instances"] for x in batch])
        return [
            {"instances": Instances(size, pred_boxes=Boxes(boxes), scores=scores.amax(-1))}
            for size, boxes, scores in zip(images.image_sizes, corners, logits, strict=True)
        ]

    def losses(self, logits, corners, instances):
        labels, boxes = torch.full(logits.shape[:2], 2), []
        for i, truth in enumerate(instances):
            iou = pairwise_iou(truth.gt_boxes, Boxes(corners[i].detach()))
            gt, query = map(torch.as_tensor, linear_sum_assignment(-iou))
            labels[i, query] = truth.gt_classes[gt]
            boxes.append(giou_loss(corners[i, query], truth.gt_boxes.tensor[gt]).mean())
        return {
            "loss_class": F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
            "loss_box": torch.stack(boxes).mean(),
        }


def detr(dim, layers):
    torch.manual_seed(layers)
    return Detr(dim, layers).train()


class Spy(Distiller):
    def forward(self, student, teacher, targets=None):
        self.seen = [*self.pairs(student, teacher)]
        return {"loss_spy": sum(pair.student.square().mean() for pair in self.seen)}


def step(model, batch):
    torch.manual_seed(0)
    with EventStorage():
        return model(batch)


@pytest.fixture
def pair(request, tiny):
    """A plain model, the same again, a teacher, and which of their modules are to learn."""
    if request.param == "vit":
        models, teacher = [vit(tiny, 8, 1) for _ in range(2)], vit(tiny, 12, 2)
        levels = ["backbone.net.blocks.0 from backbone.net.blocks.1", "p3"]
    else:
        models, teacher = [detr(8, 1) for _ in range(2)], detr(12, 2)
        levels = ["encoder"]
    return *models, Teacher(teacher, "BGR", "BGR"), levels


both = pytest.mark.parametrize("pair", ["vit", "detr"], indirect=True)


@both
def test_a_pair_takes_a_step_and_its_own_losses_stay_bit_for_bit(pair, batch):
    plain, model, teacher, levels = pair
    expected = step(plain, batch)
    assert distil(model, teacher, ARGUMENTS, levels) is model
    losses = step(model, batch)
    assert {*losses} == {*expected, "loss_pkd", "loss_dpk"}
    assert all(torch.equal(losses[name], expected[name]) for name in expected)
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    sgd = torch.optim.SGD(model.parameters(), 0.01)
    sgd.zero_grad()
    step(model, batch)["loss_pkd"].backward()
    sgd.step()
    assert step(model, batch)["loss_pkd"] < losses["loss_pkd"]
    model.distillation.remove()
    assert {*step(model, batch)} == {*expected}
    assert [*model.state_dict()] == [*plain.state_dict()]


@both
def test_only_what_is_named_learns_where_only_that_is_distilled(pair, batch):
    _, model, teacher, levels = pair
    distil(model, teacher, {"pkd": {"levels": levels[:1]}})
    step(model, batch)["loss_pkd"].backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None}
    after = {"backbone.up", "backbone.lateral", "proposal", "roi", "decoder", "classes", "boxes"}
    assert any(name.startswith("backbone") for name in learnt)
    assert not [name for name in learnt if name.startswith(tuple(after))]


def test_maps_are_what_the_modules_returned(tiny, batch):
    model, teacher = vit(tiny, 8, 1), Teacher(vit(tiny, 12, 2), "BGR", "BGR")
    returned = {}
    for name, net in (("student", model), ("teacher", teacher.model)):
        net.backbone.net.blocks[-1].register_forward_hook(
            lambda *hook, name=name: returned.update({name: hook[-1]})
        )
    level = Level("backbone/net/blocks/0", "backbone/net/blocks/1", 16, 8, 12)
    spy = Spy([level])
    attach_distiller(model, teacher, spy)
    step(model, batch)
    (seen,) = spy.seen
    assert seen.student.shape == (2, 8, 4, 6)
    for name, found in (("student", seen.student), ("teacher", seen.teacher)):
        for row in range(4):
            for column in range(4):  # the first image is 64 pixels wide, the rest is padding
                assert torch.equal(found[0, :, row, column], returned[name][0, row, column])
    assert not seen.student[0, :, :, 4:].any()


def test_tokens_become_rows_and_columns_of_cells(batch):
    model, teacher = detr(8, 1), Teacher(detr(12, 2), "BGR", "BGR")
    seen = []
    model.encoder.register_forward_hook(lambda *hook: seen.append(hook[-1]))
    spy = Spy([Level("encoder", "encoder", 8, 8, 12)])
    attach_distiller(model, teacher, spy)
    step(model, batch)
    (found,) = spy.seen
    tokens = seen[-1]  # (96, 2, 8): 8 x 12 cells of 8 pixels
    for image, width in enumerate((8, 12)):  # without the padding
        for cell in range(96):
            row, column = divmod(cell, 12)
            if column < width:
                assert torch.equal(found.student[image, :, row, column], tokens[cell, image])


def test_no_larger_image_is_tried_than_the_square_that_a_backbone_pads_to(tiny):
    model, sizes = vit(tiny, 12, 1), []
    model.backbone.padding_constraints = {"square_size": 128}
    model.backbone.register_forward_pre_hook(lambda _, x: sizes.append(tuple(x[0].shape[2:])))
    assert find_layouts(model, ["backbone.net"]) == {"backbone/net": Layout("bchw", 16, 12)}
    assert sizes == [(128, 128)]


def test_finding_a_layout_leaves_no_trace(tiny):
    model = vit(tiny, 8, 1)
    model.backbone.net.eval()
    modes = [module.training for module in model.modules()]
    before, numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = find_layouts(model, ["backbone.net.blocks.0", "backbone.net"])
    assert found == {
        "backbone/net/blocks/0": Layout("bhwc", 16, 8),
        "backbone/net": Layout("bchw", 16, 8),
    }
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Tokens(nn.Module):
    """Gives what a module of a model is asked to return."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return x if self.output is None else self.output


@pytest.mark.parametrize(
    ("output", "layout"),
    [
        (torch.zeros(2, 384, 5), Layout("bnc", 16, 5)),
        (torch.zeros(384, 2, 5), Layout("nbc", 16, 5)),
        (torch.zeros(2, 24, 5), Layout("bnc", 64, 5)),
        (torch.zeros(2, 385, 5), "is no map"),  # with a class token
        (torch.zeros(2, 5), "is no map"),
        (torch.zeros(3, 16, 24, 5), "is no map"),
        (torch.zeros(2, 16, 24, 16), Layout("bhwc", 16, 16)),
        (torch.zeros(2, 4, 6, 9), r"returns a tensor of \(2, 4, 6, 9\) .* can be read in two ways"),
        ((torch.zeros(2, 16, 24, 5),), "returns a tuple: name a module"),
    ],
)
def test_layouts_are_told_or_refused(output, layout, batch):
    model = detr(8, 1)
    model.extra = Tokens(output)
    model.encoder.register_forward_pre_hook(lambda *_: (model.extra(torch.zeros(1)), None)[1])
    if isinstance(layout, Layout):
        assert find_layouts(model, ["extra"]) == {"extra": layout}
    else:
        with pytest.raises(UserError, match=f"extra.*{layout}"):
            find_layouts(model, ["extra"])


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (["encoder.layer"], r"names 'encoder.layer', which the student lacks.*path of a module"),
        (["encoder from encoders"], "names 'encoders', which the teacher lacks"),
        (["encoder from encoder.layers.0", "encoder"], "names encoder twice"),
        (["project from backbone.stem"], "pairs 'project from backbone.stem', whose strides are 8"),
        (["queries"], "queries does not run"),
        (["decoder"], r"decoder returns a tensor of .* is no map"),
        (["loud"], "loud runs several times in a step"),
        ([3], r"DISTILL.LEVELS is \[3\]"),
        ("encoder", "DISTILL.LEVELS is 'encoder': write a list"),
    ],
)
def test_what_cannot_be_a_level_is_said_in_a_sentence(levels, message):
    model, teacher = detr(8, 1), detr(12, 2)
    model.loud = nn.Identity()
    for _ in range(2):
        model.encoder.register_forward_hook(lambda *hook: model.loud(hook[-1]))
    with pytest.raises(UserError, match=message):
        distil(model, Teacher(teacher, "BGR", "BGR"), {"pkd": {}}, levels)


def test_a_compiled_teacher_cannot_be_looked_into(tiny):
    teacher = Teacher(vit(tiny, 8, 1), "BGR", "BGR", compiled=True)
    with pytest.raises(UserError, match=r"compiled.*set DISTILL.TEACHER.COMPILE to False"):
        distil(vit(tiny, 8, 1), teacher, {"pkd": {}}, ["backbone.net.blocks.0"])


def test_tokens_that_do_not_fill_the_image_are_refused():
    with pytest.raises(UserError, match=r"a.b returns 5 tokens .* 32 x 48 .* 2 x 3"):
        Layout("bnc", 16, 7).read(torch.zeros(1, 5, 7), "a/b", (32, 48))


def test_modules_of_a_resnet_are_levels_of_a_config(tiny, batch):
    path = "backbone.bottom_up.res3"
    cfg = tiny.cfg("dpk", "DISTILL.LEVELS", [path, "p4"], "DISTILL.DPK.LEVELS", [path])
    model = attach_from_config(tiny.build("plain"), cfg).train()
    (level,) = model.distiller.methods["dpk"].levels
    assert level == Level("backbone/bottom_up/res3", "backbone/bottom_up/res3", 8, 8, 12)
    step(model, batch)["loss_dpk"].backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None}
    assert "backbone.bottom_up.res3.0.conv1.weight" in learnt
    assert not [name for name in learnt if "res4" in name or "fpn" in name]


class Keeper(Distiller):
    """Keeps the maps that it is given."""

    def forward(self, student, teacher, targets=None):
        self.maps = {"student": student.maps, "teacher": teacher.maps}
        return {"loss_keeper": 0 * sum(x.sum() for x in student.maps.values())}


def test_a_map_that_the_network_changes_in_place_learns_as_it_was_returned(tiny, batch):
    path = "backbone.bottom_up.res3.0.conv1"  # its block applies relu_ to what it returns
    plain, model, teacher = (tiny.build(x) for x in ("plain", "plain", "teacher"))
    returned = {}
    for who, net in (("student", model), ("teacher", teacher)):
        net.get_submodule(path).register_forward_hook(
            lambda *hook, who=who: returned.update({who: hook[-1].detach().clone()})
        )
    name = path.replace(".", "/")
    keeper = Keeper([Level(name, name, 8, 8, 12)])
    attach_distiller(model, Teacher(teacher, "BGR", "BGR"), keeper)
    losses, expected = step(model.train(), batch), step(plain.train(), batch)
    for who, maps in keeper.maps.items():
        assert torch.equal(maps[name], returned[who]) and maps[name].min() < 0
    assert all(torch.equal(losses[x], loss) for x, loss in expected.items())
    # the model's own losses depend on the same tensor, so their share of its gradient is measured
    own = sum(losses[x] for x in expected)
    assert torch.autograd.grad(own, keeper.maps["student"][name], retain_graph=True)[0].any()
    own.backward()
    sum(expected.values()).backward()
    gradients = {x: p.grad for x, p in model.named_parameters()}
    assert all(torch.equal(p.grad, gradients[x]) for x, p in plain.named_parameters())


def test_a_map_that_only_training_changes_in_place_is_an_error(batch):
    def double(decoder, inputs):
        if decoder.training:
            inputs[1].mul_(2)

    model = detr(8, 1)
    model.decoder.register_forward_pre_hook(double)
    distil(model, Teacher(detr(12, 2), "BGR", "BGR"), {"pkd": {}}, ["encoder"])
    with pytest.raises(UserError, match="changes in place what encoder returns: name a module in"):
        step(model, batch)


def test_a_detector_of_given_proposals_learns_from_its_modules(tiny):
    given = ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", True]
    cfg = tiny.cfg("dpk", *given, "DISTILL.LEVELS", ["backbone.bottom_up.res4"])
    model = attach_from_config(tiny.build("plain", *given), cfg).train()
    assert step(model, made_up_batch(cfg, 2))["loss_dpk"] > 0


@both
def test_a_copy_learns_from_its_own_modules(pair, batch):
    _, model, teacher, levels = pair
    distil(model, teacher, {"pkd": {}}, levels)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(0.5)
    mine, its = step(model, batch)["loss_pkd"], step(twin, batch)["loss_pkd"]
    assert not torch.equal(mine, its)
    its.backward()
    assert all(p.grad is None for p in model.parameters())


@both
def test_the_share_of_the_gradient_is_measured_at_modules_too(pair, batch):
    _, model, teacher, levels = pair
    distil(model, teacher, {"pkd": {"weight": 0.5}}, levels, grad_share_every=1)
    step(model, batch)
    assert model.distiller.metrics["pkd/grad_share"] > 0


def test_a_teacher_in_half_precision_gives_modules_in_float32(tiny, batch):
    teacher = Teacher(vit(tiny, 8, 1), "BGR", "BGR", precision="bf16")
    teacher.look_at(["backbone.net.blocks.0"])
    seen = teacher(batch)
    assert {x.dtype for x in seen.maps.values()} == {torch.float32}
    whole = look(teacher.model, batch, teacher.layouts)
    name = "backbone/net/blocks/0"
    torch.testing.assert_close(seen.maps[name], whole.maps[name], rtol=0.05, atol=0.05)
