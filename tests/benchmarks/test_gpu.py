"""The pieces for a GPU: each is run once, and again where it was not done."""

import contextlib
import shlex

import gpu
import pytest

from dpk_det.engine import train

ROOT = gpu.Path(gpu.__file__).parents[1]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs stand-ins for the pieces; the lines that are printed."""
    scripts = {
        "good": "print('a table')",
        "bad": "raise SystemExit(1)",
        "slow": "import time; time.sleep(30)",
    }
    pieces = {name: f"-c {shlex.quote(script)}" for name, script in scripts.items()}
    monkeypatch.setattr(gpu, "PIECES", pieces)
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)

    def run(*argv, status=0):
        with contextlib.nullcontext() if status == 0 else pytest.raises(SystemExit):
            gpu.main(["--output", str(tmp_path), *argv])
        return capsys.readouterr().out.splitlines()

    return run


def test_what_is_done_is_not_run_again_and_what_failed_is(call, tmp_path):
    names = ["bad", "slow", "good"]
    said = call("--seconds", "1", "--only", "slow", status=0)
    assert said == ["slow: cut short"]
    # what was cut short comes last
    said = call("--seconds", "8", "--only", *names, status=1)
    assert said == ["bad: failed", "good: done", "slow: cut short"]
    assert (tmp_path / "good.txt").read_text().endswith("a table\n")
    assert call("--list", "--only", "good", "bad") == ["good: done before", "bad: left"]
    assert call("--seconds", "0", "--only", "slow") == ["slow: left"]


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--output", str(tmp_path)])
    assert "finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("name", gpu.PIECES)
def test_the_commands_are_ones_that_are_understood(name):
    script, *argv = gpu.PIECES[name].replace(gpu.TORCHRUN, "").split()
    assert (ROOT / script).is_file()
    if script == "benchmarks/step.py":
        import step

        step.parse_args(argv)
    elif argv:
        assert script == "tools/train_net.py"
        assert train.parse_args(argv).resume  # one that was cut short has left checkpoints
