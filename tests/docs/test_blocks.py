"""Every block and command of the pages can be copied: it loads, compiles, or is taken by its tool.

Commands are read by the parser of the very script that they name, with the config that they name.
They start in a folder that looks like the repository's, beside the files that the pages tell their
readers to write. What they train is run in the tests of the tools and of the examples.
"""

import argparse
import ast
import importlib
import json
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from detectron2.config import LazyConfig
from detectron2.modeling import META_ARCH_REGISTRY
from pip._internal.commands import create_command

from dpk_det.cli import COMMANDS
from dpk_det.comparison.plan import plan
from dpk_det.comparison.suite import read_suite
from dpk_det.config.loading import load_config
from dpk_det.config.methods import comparable
from dpk_det.distill import DISTILLERS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
PROGRAMS = ("python", "make", "pip", "torchrun", "dpk-det", "sbatch")
# names that stand for the reader's own
STANDS_FOR = {
    "configs/compare/NAME.yaml": "configs/compare/shapes_methods.yaml",
    "my/suite.yaml": "configs/compare/demo.yaml",  # which `dpk-det init my` would write
    "output/my_tuning/tuned.yaml": "my_tuning.yaml",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, the language it says, and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    """The blocks of a page, and what stands outside of them."""
    blocks, rest, opened = [], [], None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.fullmatch(r"\s*```(\w*)", line)
        if fence and opened is None:
            opened = Block(page, number, fence[1], "")
        elif fence:
            blocks.append(opened)
            opened = None
        elif opened is not None:
            opened = Block(page, opened.line, opened.language, f"{opened.text}{line}\n")
        else:
            rest.append(line)
    assert opened is None, f"{opened} is not closed"
    return blocks, rest


BLOCKS = {page: blocks_of(page)[0] for page in PAGES}


def of_language(language):
    """A parameter for each block in a language."""
    found = [block for blocks in BLOCKS.values() for block in blocks if block.language == language]
    return pytest.mark.parametrize("block", found, ids=str)


def spans(pattern):
    """A parameter for each `piece of code` within a line that matches."""
    pieces = re.findall(r"`([^`]+)`", "\n".join("\n".join(blocks_of(x)[1]) for x in PAGES))
    found = {piece for piece in (" ".join(x.split()) for x in pieces) if re.match(pattern, piece)}
    assert len(found) > 10
    return pytest.mark.parametrize("span", sorted(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The repository's folder, with the files that the pages name their readers' own."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("configs", "examples", "tools", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for page in PAGES:
        for block in BLOCKS[page]:
            name = re.match(r"# (my\w*\.(?:yaml|py))\b", block.text)
            if name:
                assert not (folder / name[1]).exists(), f"{block}: {name[1]} stands on another page"
                (folder / name[1]).write_text(block.text)
    assert {"my.yaml", "my_suite.yaml", "my_attention.py"} <= {x.name for x in folder.iterdir()}
    known = dict(DISTILLERS), dict(META_ARCH_REGISTRY), list(sys.path)
    yield folder
    for module in folder.glob("*.py"):  # that were imported, and what they have registered
        sys.modules.pop(module.stem, None)
    DISTILLERS.clear()
    DISTILLERS.update(known[0])
    META_ARCH_REGISTRY._obj_map.clear()
    META_ARCH_REGISTRY._obj_map.update(known[1])
    sys.path[:] = known[2]


@pytest.fixture(autouse=True)
def start_there(folder, monkeypatch):
    monkeypatch.chdir(folder)


# ------------------------------------------------------------------ all blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_fenced_and_says_its_language(page):
    blocks, rest = blocks_of(page)
    for block in blocks:
        assert block.language in ("python", "sh", "text", "yaml"), block
    before = ""
    for line in rest:  # four spaces make a block as well, unless they go on with a list
        assert before.strip() or not line.startswith("    "), line
        before = line


@of_language("yaml")
def test_yaml_is_a_config_or_a_suite(block, folder):
    path = folder / "block.yaml"
    path.write_text(block.text)
    if re.search(r"^methods:", block.text, re.MULTILINE):
        suite = read_suite(path)
        for run in plan(suite, folder / "runs", suite.seeds[:1]).runs:
            load_config(run.config, run.opts)
    else:
        load_config(str(path))


@of_language("python")
def test_python_compiles_and_what_it_imports_is_there(block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), node.module


# ------------------------------------------------------------------ commands


class Parsed(Exception):
    """What a script's parser made of its command line."""


def parse(script, argv, monkeypatch):
    """The arguments that a script, or a module, gets; it ends there."""
    whole = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise Parsed(whole(self, args, namespace))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [script, *argv])
        patch.setattr(sys, "path", [str(Path(script).parent), *sys.path])  # as `python` does
        with pytest.raises(Parsed) as parsed:
            run = runpy.run_path if script.endswith(".py") else runpy.run_module
            run(script, run_name="__main__")
    return parsed.value.args[0]


def check_config(config_file, opts):
    if str(config_file).endswith(".py"):
        LazyConfig.apply_overrides(LazyConfig.load(config_file), opts)
    else:
        load_config(config_file or "", opts)


def check_script(script, argv, monkeypatch):
    if script.endswith("make_data.py") or script.endswith("backbone.py"):
        assert Path(script).is_file() and argv
        return
    args = parse(script, argv, monkeypatch)
    if hasattr(args, "suite"):
        suite = read_suite(args.suite)
        assert {*(getattr(args, "only", None) or ())} <= suite.methods.keys()
    if hasattr(args, "opts"):
        check_config(getattr(args, "config_file", ""), args.opts)


def check_make(argv):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    for word in argv:
        name, equals, _ = word.partition("=")
        assert name in (variables if equals else targets), word


def check_pip(argv):
    command, *argv = argv
    _, requirements = create_command(command).parse_args(argv)
    for requirement in requirements:
        known = r"\.|git\+https://github\.com/[\w.-]+/[\w.-]+\.git|[\w-]+(\[[\w-]+\])?"
        assert re.fullmatch(known, requirement)


def check_command(text, monkeypatch):
    words = shlex.split(text.partition(" > ")[0], comments=True)
    environment = []
    if words[:1] == ["export"]:  # for the lines that follow
        words = words[1:]
        assert all(re.fullmatch(r"[A-Z]\w*=\S*", word) for word in words)
        return
    while words and re.match(r"[A-Z]\w*=", words[0]):
        environment.append(words.pop(0))
    program, *argv = (STANDS_FOR.get(word, word) for word in words)
    assert program in PROGRAMS, f"nobody checks {program}"
    if program == "make":
        check_make([*environment, *argv])
    elif program == "pip":
        check_pip(argv)
    elif program == "dpk-det":
        module = import_module(COMMANDS[argv[0]][0])
        args = module.parse_args(argv[1:]) if len(argv) > 1 else None  # else it is but named
        if hasattr(args, "suite"):
            read_suite(args.suite)
    elif program == "sbatch":  # its options, then a script and that one's arguments
        script = next(i for i, word in enumerate(argv) if word.endswith(".sbatch"))
        assert (ROOT / argv[script]).is_file()
        check_script("tools/train_net.py", argv[script + 1 :], monkeypatch)
    elif argv[0] == "-c":
        ast.parse(argv[1])
    elif argv[0] == "-m":
        check_script(argv[1], argv[2:], monkeypatch)
    elif program == "torchrun":
        # its own options, then a script and its arguments, of which dots stand for more
        from torch.distributed.run import parse_args

        args = parse_args(argv)
        check_script(
            args.training_script, [x for x in args.training_script_args if x != "..."], monkeypatch
        )
    else:
        check_script(argv[0], argv[1:], monkeypatch)


@of_language("sh")
def test_every_command_of_a_block_is_taken_by_its_program(block, monkeypatch):
    for line in block.text.replace("\\\n", " ").splitlines():
        check_command(line, monkeypatch)


# a module that this process has imported already is run once more
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@spans(rf"([A-Z]\w*=\S+ )*({'|'.join(PROGRAMS)}) ")
def test_a_command_within_a_line_is_taken_by_its_program(span, monkeypatch):
    check_command(span, monkeypatch)


def test_commands_in_the_comments_of_blocks_are_taken_as_well(monkeypatch):
    found = [
        command
        for blocks in BLOCKS.values()
        for block in blocks
        for command in re.findall(r"^# \S+\s+(python .*)", block.text, re.MULTILINE)
    ]
    assert found
    for command in found:
        check_command(command, monkeypatch)


KEY = r"[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)+"


@spans(rf"(--[a-z-]+ )?{KEY}:? \S")
def test_keys_and_values_within_a_line_are_taken(span):
    span = re.sub(r"^--[a-z-]+ ", "", span)
    one = re.fullmatch(rf"({KEY}): (.*)", span)  # as it stands in a file
    load_config("", list(one.groups()) if one else shlex.split(span))


def test_defaults_that_pages_quote_are_the_codes():
    text = "\n".join(" ".join(blocks_of(page)[1]) for page in PAGES)
    quoted = re.findall(r"`([A-Z_]+): ([^`]+)` \((?:the )?default\)", text)
    assert len(quoted) > 2
    # what FORM implies is filled in
    defaults = comparable(yaml.safe_load(load_config("", []).dump()))
    for key, value in quoted:
        assert defaults[f"DISTILL.DPK.{key}"] == yaml.safe_load(value), key


# ------------------------------------------------------------------ the first one to be run


def test_the_first_config_of_the_readme_is_ready_to_run(folder, tiny, command, capsys):
    (folder / "data").mkdir()
    (folder / "data/images").symlink_to(tiny.plain.with_name("images"))
    content = json.loads(tiny.plain.with_name("images.json").read_text())
    content["categories"].append({"id": 3, "name": "triangle"})
    for name in ("train", "val"):
        (folder / f"data/{name}.json").write_text(json.dumps(content))
    (folder / "my_teacher.yaml").write_text(
        f'_BASE_: "{tiny.teacher}"\nMODEL: {{ROI_HEADS: {{NUM_CLASSES: 3}}}}\n'
    )
    teacher = tiny.build("teacher", "MODEL.ROI_HEADS.NUM_CLASSES", 3)
    torch.save({"model": teacher.state_dict()}, folder / "my_teacher.pth")
    torch.save(torchvision.models.resnet18().state_dict(), folder / "R18.pth")  # no network here
    opts = ["MODEL.WEIGHTS", "R18.pth", "INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.DEVICE", "cpu"]
    command("--config-file", "my.yaml", "--check", "INPUT.MIN_SIZE_TEST", 64, *opts)
    assert "The job is ready to run." in capsys.readouterr().out
