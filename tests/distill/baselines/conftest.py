"""What the tests of the rivals share: two networks' features of two images, and slow helpers."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from dpk_det.distill import Features, Level, Logits, Targets

STRIDES = {"p3": 8, "p4": 16}
SIZES = [(64, 48), (33, 64)]
EXTENTS = {"p3": [(8, 6), (5, 8)], "p4": [(4, 3), (3, 4)]}  # ceil(size / stride)
BOXES = [
    [[4.0, 4.0, 30.0, 27.0], [9.0, 12.0, 45.0, 60.0], [10.0, 14.0, 20.0, 30.0]],
    [[30.0, 2.0, 63.5, 32.0]],
]


@dataclass
class Scene:
    """Two images seen by both networks. Student maps and logits want gradients."""

    levels: list[Level]
    student: Features
    teacher: Features
    targets: Targets

    def args(self):
        """What a distiller's forward takes."""
        return self.student, self.teacher, self.targets

    def images(self, level):
        """Student's and teacher's map of each image in float64, cut to what is not padding."""
        s, t = self.student.maps[level.student], self.teacher.maps[level.teacher]
        extents = EXTENTS[level.student] if self.student.image_sizes else [s.shape[2:]] * len(s)
        for i, (h, w) in enumerate(extents):
            yield s[i, :, :h, :w].double(), t[i, :, :h, :w].double()

    def alone(self, i):
        """Image i by itself, in maps that are cut to it."""
        one = copy.copy(self)
        one.student, one.teacher = (
            Features(
                {
                    name: x[
                        i : i + 1, :, : EXTENTS["p" + name[1]][i][0], : EXTENTS["p" + name[1]][i][1]
                    ]
                    .detach()
                    .clone()
                    for name, x in features.maps.items()
                },
                features.strides,
                [SIZES[i]],
            )
            for features in (self.student, self.teacher)
        )
        one.targets = Targets([self.targets.boxes[i]], [self.targets.classes[i]])
        return one

    def leaves(self):
        """The student's tensors that want gradients."""
        return [*self.student.maps.values(), *(x.values for x in self.student.logits.values())]

    def padding(self):
        """Map name to (B, H, W) bool, true where a cell lies in padding."""
        masks = {}
        for name, x in {**self.student.maps, **self.teacher.maps}.items():
            masks[name] = torch.ones(len(x), *x.shape[2:], dtype=torch.bool)
            for mask, (h, w) in zip(masks[name], EXTENTS["p" + name[1]], strict=True):
                mask[:h, :w] = False
        return masks


def make_scene(padded=True, widths=(3, 5), seed=0):
    """Two levels of 8 x 8 and 4 x 4 cells; widths: channels of student and teacher.

    Padding is filled with NaN, which would show in any loss.
    """
    g = torch.Generator().manual_seed(seed)
    cs, ct = widths
    levels = [Level(f"p{i}", f"q{i}", 2**i, cs, ct) for i in (3, 4)]

    def look(prefix, channels):
        maps = {
            f"{prefix}{i}": torch.randn(2, channels, 64 // 2**i, 64 // 2**i, generator=g) + 0.3
            for i in (3, 4)
        }
        strides = {name: STRIDES["p" + name[1]] for name in maps}
        return Features(maps, strides, SIZES if padded else None)

    student, teacher = look("p", cs), look("q", ct)
    boxes = [torch.tensor(x) for x in BOXES]
    scene = Scene(levels, student, teacher, Targets(boxes, [torch.arange(len(x)) for x in boxes]))
    if padded:
        for features in (student, teacher):
            for name, mask in scene.padding().items():
                if name in features.maps:
                    features.maps[name].masked_fill_(mask.unsqueeze(1), torch.nan)
    labels = torch.randint(4, (6,), generator=g)
    for features in (student, teacher):
        own = features is student
        features.logits = {
            "roi": Logits(2 * torch.randn(6, 4, generator=g), True, labels if own else None),
            "rpn": Logits(2 * torch.randn(9, 2, generator=g), False),
            "dense": Logits(2 * torch.randn(7, 3, generator=g), False),
        }
    for leaf in scene.leaves():
        leaf.requires_grad_()
    return scene


@pytest.fixture
def scene():
    """``scene(padded, widths, seed)`` makes one."""
    return make_scene


def shake(distiller, seed=0):
    """Move every parameter, so that none is left at 0 or 1, where mistakes would hide."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in distiller.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    return distiller


@pytest.fixture(name="shake")
def shake_fixture():
    """``shake(distiller)`` moves every parameter."""
    return shake


def adapt(adapter, x):
    """One image (C, H, W) through a 1 x 1 convolution, or as it is, in float64."""
    if isinstance(adapter, nn.Identity):
        return x
    weight, bias = adapter.weight.double()[:, :, 0, 0], adapter.bias.double()
    return torch.stack(
        [
            sum(w * c for w, c in zip(row, x, strict=True)) + b
            for row, b in zip(weight, bias, strict=True)
        ]
    )


@pytest.fixture(name="adapt")
def adapt_fixture():
    """``adapt(adapter, image)``, the 1 x 1 convolution channel by channel."""
    return adapt


@pytest.fixture
def agree():
    """``agree(distiller, scene, loss, want)``: equal values, and equal gradients everywhere."""

    def check(distiller, scene, loss, want):
        assert loss.item() == pytest.approx(want.item(), rel=1e-4)
        wrt = [*scene.leaves(), *distiller.parameters()]
        gots, wants = (
            [torch.zeros_like(x) if g is None else g for g, x in zip(grads, wrt, strict=True)]
            for grads in (torch.autograd.grad(x, wrt, allow_unused=True) for x in (loss, want))
        )
        largest = max(w.abs().max().item() for w in wants)
        for got, want in zip(gots, wants, strict=True):
            atol = 1e-4 * want.abs().max().item() + 1e-5 * largest
            torch.testing.assert_close(got, want, rtol=1e-3, atol=atol)

    return check
