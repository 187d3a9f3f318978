"""Trainings of two processes under torchrun, on the CPU."""

import signal
import socket
from pathlib import Path

import pytest
from harness import (
    Command,
    Experiment,
    Fault,
    await_file,
    check_equal,
    check_whole,
    last_lines,
    start_alone,
)

pytestmark = pytest.mark.whole


@pytest.fixture(scope="session")
def group(nursery, tiny, tmp_path_factory) -> Experiment:
    """A distilling training of two processes, run once without faults."""
    argv = ["--config-file", tiny.dpk, "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 4]
    argv += ["DATALOADER.NUM_WORKERS", 1]
    one = Experiment(nursery, argv, tmp_path_factory.mktemp("group"))
    one.reference = start(one, one.folder / "reference").succeed().folder
    return one


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start(one: Experiment, folder: Path, *faults, resume: bool = False) -> Command:
    """Train under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    argv = ["--resume"] * resume + [*one.argv, "OUTPUT_DIR", folder]
    return start_alone(folder, argv, faults, launcher=launcher)


def check_stopped(command: Command) -> None:
    """It has ended with one line of ours, and no traceback but torchrun's own."""
    if not command.wait():
        raise Fault("status 0 for a training that was stopped")
    said = command.said
    if "dpk_det/engine" in said.partition("Traceback")[2]:
        raise Fault(f"traceback: {last_lines(said)}")
    lines = [line for line in said.splitlines() if "--resume" in line]
    if len(lines) != 1:
        raise Fault(f"{len(lines)} sentences for one: {last_lines(said)}")


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT"])
def test_a_signal_to_torchrun(group, tmp_path, sent):
    folder, held = tmp_path / "run", tmp_path / "held"
    first = start(group, folder, {"at": "step", "n": 3, "do": f"hold {held}", "rank": 0})
    await_file(held, first)
    first.kill(getattr(signal, sent))
    held.unlink()
    check_stopped(first)
    check_resumes(group, folder, first)


@pytest.mark.parametrize("sent, rank", [("SIGTERM", 0), ("SIGUSR1", 1), ("SIGTERM", None)])
def test_a_signal_to_its_processes(group, tmp_path, sent, rank):
    folder = tmp_path / "run"
    fault = {"at": "step", "n": 3, "do": sent} | ({} if rank is None else {"rank": rank})
    first = start(group, folder, fault)
    check_stopped(first)
    check_resumes(group, folder, first)


def test_a_signal_while_one_evaluates(group, tmp_path):
    folder = tmp_path / "run"
    first = start(group, folder, {"at": "evaluation", "do": "SIGUSR1"})
    check_stopped(first)
    check_resumes(group, folder, first)


def check_resumes(one: Experiment, folder: Path, first: Command) -> None:
    """Nothing is left, and the run goes on to the same end."""
    first.left_behind()
    check_whole(folder)
    second = start(one, folder, resume=True).succeed()
    if {*first.steps} & {*second.steps}:
        raise Fault(f"not saved: of the steps {first.steps} it repeats {second.steps}")
    check_equal(folder, one.reference, [first, second])


def test_nothing_is_left_when_torchrun_is_killed(group, tmp_path):
    folder, held = tmp_path / "run", tmp_path / "held"
    first = start(group, folder, {"at": "step", "n": 3, "do": f"hold {held}", "rank": 0})
    await_file(held, first)
    first.kill()
    held.unlink()
    first.die().left_behind()
    check_whole(folder)
    second = start(group, folder, resume=True).succeed()
    check_equal(folder, group.reference, [second])


def test_one_process_of_two_is_killed(group, tmp_path):
    folder = tmp_path / "run"
    first = start(group, folder, {"at": "step", "n": 6, "do": "SIGKILL", "rank": 1})
    assert first.wait() != 0
    first.left_behind()
    check_whole(folder)
    second = start(group, folder, resume=True).succeed()
    check_equal(folder, group.reference, [first, second])


def test_a_killed_process_comes_back_under_elastic_torchrun(group, tmp_path, monkeypatch):
    # torchrun keeps one store for all its attempts, and processes that come back read in it where
    # those before them listened; this gives each attempt a store of its own
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # two agents, as on two machines, of a process each; in the second the one of rank 1 is killed
    folder = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    launcher += ["--max-restarts", "2", "--local-addr", "127.0.0.1"]
    # it counts the steps of a process, and the one that comes back has two to do
    fault = {"at": "step", "n": 6, "do": "SIGKILL", "rank": 1}
    argv = ["--resume", *group.argv, "OUTPUT_DIR", folder]
    agents = [start_alone(folder, argv, [fault], launcher=launcher) for _ in range(2)]
    said = [agent.succeed().said for agent in agents]
    assert any("Signal 9" in x or "exitcode: -9" in x for x in said)
    check_whole(folder)
    check_equal(folder, group.reference, agents)


def test_real_processes_that_are_killed(experiment, tmp_path):
    # as those that the other tests fork, but each in an interpreter of its own
    one = experiment("dpk-workers")
    folder = tmp_path / "run"
    argv = [*one.argv, "OUTPUT_DIR", folder]
    fault = {"at": "step", "n": 4, "do": "SIGKILL"}
    first = start_alone(folder, argv, [fault]).die()
    second = start_alone(folder, ["--resume", *argv]).succeed()
    first.left_behind()
    check_equal(folder, one.reference, [first, second])
