"""The keys that are added to Detectron2's config, those of methods made from their signatures."""

import ast
import inspect
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

import pytest
from detectron2.config import get_cfg
from msgspec import Meta
from torch import nn

from dpk_det.config import key_table
from dpk_det.config.key_table import KEYS
from dpk_det.config.keys import add_dpk_config, all_keys, describe_keys, method_keys
from dpk_det.config.loading import load_config
from dpk_det.config.values import flatten
from dpk_det.distill import DISTILLERS, Distiller, register_distiller


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is gone after it."""
    known = dict(DISTILLERS)
    yield
    DISTILLERS.clear()
    DISTILLERS.update(known)


def test_adding_our_keys_changes_none_of_detectron2s():
    cfg = get_cfg()
    add_dpk_config(cfg)
    before, after = dict(flatten(get_cfg())), dict(flatten(cfg))
    assert {key: after[key] for key in before} == before
    assert {key.name for key in all_keys() if key.default != {}} == set(after) - set(before)


@pytest.mark.parametrize("name", sorted(DISTILLERS))
def test_the_node_of_a_method_is_its_signature(name):
    function = DISTILLERS[name].__init__
    wanted, kinds = {}, get_type_hints(function)
    for x in list(inspect.signature(function).parameters.values())[2:]:  # after self, levels
        if is_dataclass(kinds[x.name]):
            wanted |= {field.name: field.default for field in fields(kinds[x.name])}
        else:
            wanted[x.name] = x.default
    node = dict(load_config("").DISTILL[name.upper()])
    node.pop("LEVELS", None)
    assert node == {k.upper(): [] if v == () else v for k, v in wanted.items()}
    for key, value in node.items():
        assert type(value) is type([] if wanted[key.lower()] == () else wanted[key.lower()])


def test_methods_that_learn_from_maps_have_levels():
    nodes = {name for name in DISTILLERS if "LEVELS" in load_config("").DISTILL[name.upper()]}
    assert nodes == set(DISTILLERS) - {"kd", "dkd"}


def test_every_method_has_a_node_and_every_node_a_method():
    nodes = {
        key.lower() for key, value in load_config("").DISTILL.items() if hasattr(value, "items")
    }
    assert nodes == set(DISTILLERS) | {"teacher"}


def test_every_key_says_what_it_means():
    assert [key.name for key in all_keys() if len(key.meaning) < 2] == []


def test_no_key_is_given_twice():
    tree = ast.parse(inspect.getsource(key_table))
    names = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert all(names.count(name) == 1 for name in KEYS)


def test_a_new_method_is_one_class_and_its_keys_appear(registry):
    @dataclass(frozen=True)
    class Size:
        """How large.

        Attributes:
            width: Channels.
        """

        width: int = 8

    @register_distiller("mine")
    class Mine(Distiller):
        """Learns something.

        More on it.

        Args:
            levels: What to distil.
            weight: Weight of the
                loss.
            names, others: Some texts.
            size: How large.
            module: No config can hold it.
            must: Has to be given.
        """

        def __init__(
            self,
            levels,
            must: float,
            weight: Annotated[float, Meta(ge=0)] = 100,
            names: tuple[str, ...] = ("a",),
            others: str | None = None,
            size: Size = Size(),  # noqa: B008
            module: nn.Module = nn.Identity(),  # noqa: B008
        ):
            super().__init__(levels)

    keys = {key.name.removeprefix("DISTILL.MINE."): key for key in method_keys("mine")}
    values = {name: key.default for name, key in keys.items()}
    wanted = {"LEVELS": [], "MUST": None, "WEIGHT": 100.0, "NAMES": ["a"], "OTHERS": None}
    assert values == wanted | {"WIDTH": 8} and type(values["WEIGHT"]) is float
    assert keys["WEIGHT"].meaning == "Weight of the loss."
    assert keys["NAMES"].meaning == keys["OTHERS"].meaning == "Some texts."
    assert keys["WIDTH"].meaning == "Channels."
    cfg = load_config("", ["DISTILL.MINE.WEIGHT", "3", "DISTILL.MINE.MUST", "1.5"])
    assert (cfg.DISTILL.MINE.WEIGHT, cfg.DISTILL.MINE.MUST) == (3.0, 1.5)
    page = describe_keys()
    assert "## DISTILL.MINE\n\nLearns something.\n" in page
    assert "| `WEIGHT` | `100.0` | Weight of the loss. |" in page


def test_the_description_has_a_line_for_every_key():
    page = describe_keys()
    for key in all_keys():
        node, _, name = key.name.rpartition(".")
        section = page.split(f"## {node or 'Top level'}\n", 1)[1].split("\n## ")[0]
        assert f"| `{name}` |" in section, key.name


def test_the_page_is_what_the_command_prints():
    page = Path(__file__).parents[2] / "docs/configs.md"
    assert page.read_text() == describe_keys(), "python tools/list_keys.py > docs/configs.md"
