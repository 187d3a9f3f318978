"""The wheelhouse's list: all that is needed, and not torch."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "wheelhouse.py"
spec = importlib.util.spec_from_file_location("wheelhouse", SCRIPT)
wheelhouse = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wheelhouse)

REQUIRES = {
    "dpk_det": ["torch>=2.11", "torchvision>=0.26", "numpy>=2", "timm<2", 'ruff; extra == "dev"'],
    "timm": ["torch", "torchvision", "huggingface_hub", 'pytest; extra == "dev"'],
}


def test_what_needs_torch_is_fetched_alone_and_its_other_needs_beside_it(monkeypatch):
    monkeypatch.setattr(wheelhouse, "requires", REQUIRES.__getitem__)
    whole, alone = wheelhouse.needs()
    assert whole == ["numpy>=2", "huggingface_hub", "detectron2==0.6", "pytest", "pytest-xdist"]
    assert alone == ["timm<2"]


def test_what_needs_torch_is_known_as_such():
    found = {
        wheelhouse.name_of(need)
        for need in wheelhouse.runtime_needs("dpk_det")
        if wheelhouse.name_of(need) not in wheelhouse.LEFT_OUT
        for below in wheelhouse.runtime_needs(wheelhouse.name_of(need))
        if wheelhouse.name_of(below) in wheelhouse.LEFT_OUT
    }
    assert found <= wheelhouse.ON_TORCH
