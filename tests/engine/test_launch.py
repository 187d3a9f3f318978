"""Starting processes, and ending them in one line."""

import argparse
import json
import sys

import pytest
import torch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from dpk_det.config.loading import load_config
from dpk_det.engine import launch
from dpk_det.engine.ends import exit_on_user_error
from dpk_det.engine.launch import use_device
from dpk_det.errors import UserError

MODULE = sys.modules["dpk_det.engine.launch"]  # the package's name is that of the function


@pytest.fixture
def gpus(monkeypatch):
    """``gpus(n)``: the machine seems to have as many."""

    def have(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    monkeypatch.delenv("RANK", raising=False)
    return have


@pytest.fixture
def spawned(monkeypatch):
    """What was asked of Detectron2's launcher, which starts nothing."""
    calls = []
    monkeypatch.setattr(MODULE, "spawn", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


def arguments(num_gpus=1, num_machines=1, machine_rank=0):
    return argparse.Namespace(
        num_gpus=num_gpus,
        num_machines=num_machines,
        machine_rank=machine_rank,
        dist_url="tcp://example:1",
    )


def add(args, x, y):
    return args.num_gpus, x + y


def make_a_mistake(args):
    raise UserError("that was wrong: do this.")


# ------------------------------------------------------------------ how many processes


@pytest.mark.parametrize("num_gpus", [1, 2])
def test_without_a_gpu_it_is_this_process_whatever_is_asked_for(gpus, spawned, num_gpus):
    gpus(0)
    assert launch(add, arguments(num_gpus), 3, 4) == (num_gpus, 7)
    assert spawned == []


def test_several_machines_without_a_gpu_are_an_error(gpus, spawned, capsys):
    gpus(0)
    with pytest.raises(SystemExit) as stop:
        launch(add, arguments(num_machines=2), 3, 4)
    assert stop.value.code == 2
    assert "start CPU processes with torchrun" in capsys.readouterr().err


def test_one_gpu_is_this_process(gpus, spawned):
    gpus(8)
    assert launch(add, arguments(1), 3, 4) == (1, 7)
    assert spawned == []


def test_several_gpus_and_machines_go_to_detectron2s_launcher(gpus, spawned):
    gpus(8)
    args = arguments(num_gpus=4, num_machines=2, machine_rank=1)
    launch(add, args, 3, 4)
    ((guarded, num_gpus), kwargs) = spawned[0]
    assert num_gpus == 4
    assert (kwargs["num_machines"], kwargs["machine_rank"]) == (2, 1)
    assert kwargs["dist_url"] == "tcp://example:1"
    assert guarded(*kwargs["args"]) == (4, 7)


def test_more_gpus_than_there_are_is_an_error(gpus, spawned, capsys):
    gpus(2)
    with pytest.raises(SystemExit) as stop:
        launch(add, arguments(4), 3, 4)
    assert stop.value.code == 2
    message = "error: --num-gpus asks for 4 GPUs but this machine has 2: ask for at most that many."
    assert capsys.readouterr().err.splitlines() == [message]
    assert spawned == []


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((-1,), "--num-gpus is -1: give a number from 0 on."),
        ((1, 0), "--num-machines is 0: give a number from 1 on."),
        ((1, 2, -1), "--machine-rank is -1: give a number from 0 on."),
        ((1, 2, 2), "--machine-rank is 2 of 2 machines, which count from 0: give at most 1."),
    ],
)
def test_numbers_of_processes_that_make_no_sense(gpus, spawned, capsys, numbers, sentence):
    gpus(2)
    with pytest.raises(SystemExit) as stop:
        launch(add, arguments(*numbers), 3, 4)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert spawned == []


# ------------------------------------------------------------------ mistakes


def test_a_mistake_is_one_line_and_status_2(gpus, capsys):
    gpus(0)
    with pytest.raises(SystemExit) as stop:
        launch(make_a_mistake, arguments())
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: that was wrong: do this.\n"


def test_a_bug_keeps_its_traceback(gpus):
    gpus(0)
    with pytest.raises(TypeError):
        launch(add, arguments(), 3, "four")
    with pytest.raises(ZeroDivisionError), exit_on_user_error():
        raise ZeroDivisionError


def test_a_mistake_in_another_process_ends_this_one_with_its_status(gpus, monkeypatch):
    def spawn(*args, **kwargs):
        raise ProcessExitedException(
            "process 0 terminated with exit code 2", error_index=0, error_pid=1, exit_code=2
        )

    gpus(2)
    monkeypatch.setattr(MODULE, "spawn", spawn)
    with pytest.raises(SystemExit) as stop:
        launch(make_a_mistake, arguments(2))
    assert stop.value.code == 2


# ------------------------------------------------------------------ device


def test_a_config_runs_on_the_cpu_in_float32_where_there_is_no_gpu(gpus):
    cfg = load_config("", ["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cuda"])
    gpus(1)
    use_device(cfg)
    assert (cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED) == ("cuda", True)
    gpus(0)
    use_device(cfg)
    assert (cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED) == ("cpu", False)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps", "", "meta"])
@pytest.mark.parametrize("count", [0, 2])
def test_a_device_that_is_none(gpus, name, count):
    cfg = load_config("")
    cfg.MODEL.DEVICE = name
    gpus(count)
    with pytest.raises(UserError, match=f"MODEL.DEVICE is '{name}': write 'cuda' or 'cpu'"):
        use_device(cfg)


def test_a_gpu_that_this_machine_lacks_or_that_processes_would_share(gpus, monkeypatch):
    cfg = load_config("", ["MODEL.DEVICE", "cuda:1"])
    gpus(2)
    use_device(cfg)
    assert cfg.MODEL.DEVICE == "cuda:1"
    gpus(1)
    with pytest.raises(UserError, match="'cuda:1' but this machine has 1 GPUs"):
        use_device(cfg)
    gpus(2)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="'cuda:1', which 2 processes cannot share"):
        use_device(cfg)


# ------------------------------------------------------------------ torchrun

WORKER = """
import hashlib, json, sys
import torch.distributed as dist
from pathlib import Path
from detectron2.engine import default_setup, defaults
from detectron2.utils import comm
from dpk_det.engine import DistillTrainer, launch
from dpk_det.engine.train import parse_args, setup

defaults.collect_env_info = lambda: ""  # takes seconds

class Watched(DistillTrainer):
    # what each step has seen and left
    def run_step(self):
        batches = []
        inner = self._trainer.model.module
        hook = inner.register_forward_pre_hook(lambda _, x: batches.extend(x[0]))
        super().run_step()
        hook.remove()
        tensors = [x.detach().numpy().tobytes() for x in inner.state_dict().values()]
        self.steps.append(
            {
                "images": sorted(x["image_id"] for x in batches),
                "ratios": {k: v.item() for k, v in inner.distiller.metrics.items() if "ratio" in k},
                "state": hashlib.sha256(b"".join(tensors)).hexdigest(),
            }
        )

def main(args):
    cfg = setup(args)
    default_setup(cfg, args)
    trainer = Watched(cfg)
    trainer.steps = []
    trainer.resume_or_load(resume=False)
    trainer.train()
    rank = comm.get_rank()
    out = {
        "world": comm.get_world_size(), "local": comm.get_local_rank(),
        "backend": dist.get_backend(), "steps": trainer.steps,
    }
    Path(cfg.OUTPUT_DIR, f"rank{rank}.json").write_text(json.dumps(out))

if __name__ == "__main__":
    args = parse_args()
    launch(main, args)
"""


def test_two_processes_of_torchrun_train_in_step(tiny, tmp_path, two_processes):
    one, other = two_processes(WORKER, "SOLVER.MAX_ITER", "2")
    assert (one["world"], one["local"], other["local"]) == (2, 0, 1)
    assert one["backend"] == other["backend"] == "gloo"
    assert len(one["steps"]) == len(other["steps"]) == 2
    for mine, theirs in zip(one["steps"], other["steps"], strict=True):
        assert not set(mine["images"]) & set(theirs["images"])  # each has images of its own ...
        assert mine["ratios"] == theirs["ratios"]  # ... and yet they agree
        assert len(mine["ratios"]) == 3
        assert mine["state"] == theirs["state"]
    assert one["steps"][0]["state"] != one["steps"][1]["state"]

    results = json.loads((tmp_path / "results.json").read_text())  # both evaluated, one wrote
    assert results["results"]["bbox"]["AP"] >= 0
    # in a plain process the checkpoint is the same model's
    state = torch.load(tmp_path / "model_final.pth")["model"]
    assert list(state) == list(tiny.build("dpk").state_dict())
