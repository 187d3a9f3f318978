"""``dpk-det``: its commands, in a clone and from a wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dpk_det import cli

ROOT = Path(__file__).parents[1]
SHAPES = "configs/shapes/plain.yaml"


@pytest.fixture
def called(monkeypatch):
    """What the module of a command is run with."""
    seen = []
    monkeypatch.setattr(cli, "import_module", lambda name: seen.append(name) or Called)
    Called.run = staticmethod(seen.append)
    monkeypatch.setattr(sys, "argv", ["anything"])
    return seen


class Called:
    pass


@pytest.mark.parametrize(
    ("argv", "want"),
    [
        (["train", "--config-file", SHAPES], ["--config-file", SHAPES]),
        (["train", SHAPES, "SEED", "1"], ["--config-file", SHAPES, "SEED", "1"]),
        (["train", "--num-gpus", "2"], ["--num-gpus", "2"]),
        (["check", SHAPES], ["--check", "--config-file", SHAPES]),
        (["compare", "configs/compare/demo.yaml"], ["configs/compare/demo.yaml"]),
        (["export", SHAPES, "a.pth", "b.pth"], ["--config-file", SHAPES, "a.pth", "b.pth"]),
    ],
)
def test_arguments_reach_the_command(called, argv, want):
    cli.main(argv)
    assert called == [cli.COMMANDS[argv[0]][0], want]
    assert sys.argv[0] == f"dpk-det {argv[0]}"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_tells_its_options(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["anything"])
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: dpk-det {command} ")


@pytest.mark.parametrize("argv", [[], ["trian"]])
def test_without_a_known_command_the_commands_are_named(argv, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert [name for name in cli.COMMANDS if name not in said] == []


def test_a_reader_that_has_seen_enough_is_no_error(tiny):
    paths = [str(path) for path in tiny.cfg("plain").DATASETS.JSON.tiny]
    argv = ["init", "my", "--print", "--train", *paths, "--val", *paths]
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does
    done = subprocess.run(
        [sys.executable, "-c", f"from dpk_det.cli import main; main({argv})"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.returncode == 141 and "Error" not in done.stderr


def test_a_wheel_brings_its_configs_along(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "dpk_det", "configs"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        (entry,) = (x for x in archive.namelist() if x.endswith("entry_points.txt"))
        assert "dpk-det = dpk_det.cli:main" in archive.read(entry).decode()
    ours = {str(x.relative_to(ROOT)) for x in (ROOT / "configs").rglob("*.yaml")}
    brought = tmp_path / "installed" / "dpk_det"
    assert {str(x.relative_to(brought)) for x in brought.rglob("*.yaml")} == ours
    empty = tmp_path / "empty"
    empty.mkdir()
    code = (
        "import dpk_det; from dpk_det.comparison.suite import read_suite; from pathlib import Path;"
        "print(dpk_det.__file__, dpk_det.load_config('configs/shapes/dpk.yaml').SOLVER.MAX_ITER,"
        "read_suite(Path('configs/compare/demo.yaml')).path)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=empty,
        env={"PYTHONPATH": str(brought.parent)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert out == [
        str(brought / "__init__.py"),
        "800",
        str(brought / "configs" / "compare" / "demo.yaml"),
    ]
