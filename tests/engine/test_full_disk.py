"""A disk that is full or refuses, for which a limit on the size of files stands here."""

import resource

import pytest

from dpk_det.engine import DistillTrainer


@pytest.fixture
def limit(monkeypatch):
    """``limit(size)``: no file can grow beyond it; with a method's name, from its call on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(size, method=None):
        if method is None:
            return resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        intact = getattr(DistillTrainer, method)

        def wrapper(*args, **kwargs):
            set_limit(size)
            return intact(*args, **kwargs)

        return monkeypatch.setattr(DistillTrainer, method, wrapper)

    yield set_limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def fails(command, capsys, tiny):
    """Runs a training that must end with status 2, one sentence and no traceback: the sentence."""

    def run(folder, *opts):
        with pytest.raises(SystemExit) as stop:
            command("--config-file", tiny.plain, "OUTPUT_DIR", folder, *opts)
        assert stop.value.code == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        (line,) = err.splitlines()
        assert "could not be written (" in line
        return line

    return run


def test_no_room_for_log_and_config(fails, limit, tmp_path):
    limit(2000)
    assert f"{tmp_path}/config.yaml could not" in fails(tmp_path)
    assert {x.name for x in tmp_path.iterdir()} == {".lock", "log.txt"}


def test_no_room_for_a_checkpoint(fails, limit, tmp_path):
    limit(50_000)
    assert f"{tmp_path}/model_0000001.pth could not" in fails(
        tmp_path, "SOLVER.CHECKPOINT_PERIOD", "2"
    )
    assert not [x.name for x in tmp_path.iterdir() if "model" in x.name or "last" in x.name]


def test_no_room_for_the_figures(fails, limit, tmp_path):
    limit(300, "run_step")
    assert f"{tmp_path} could not" in fails(tmp_path, "SOLVER.MAX_ITER", "21")


def test_no_room_for_the_predictions_leaves_the_final_model(fails, limit, tmp_path):
    limit(300, "build_evaluator")
    assert f"{tmp_path} could not" in fails(tmp_path)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert not (tmp_path / "results.json").exists()


def test_a_file_in_the_folders_place(fails, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        assert f"{folder} could not" in fails(folder)
