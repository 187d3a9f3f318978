"""No weight file and no config holds code that runs, wherever one is given."""

import os
import pickle

import numpy as np
import pytest
import torch
import yaml

from dpk_det.checkpoint.arrays import load_arrays
from dpk_det.comparison import command as compare
from dpk_det.deploy import predict
from dpk_det.deploy.export import export_student


class Evil:
    """Makes a folder when it is unpickled as Python does."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def made(tmp_path):
    """The folder that code in a file would make."""
    return tmp_path / "made"


@pytest.fixture(params=["pkl", "pth"])
def weights(request, tmp_path, made):
    """A weight file that holds code, as either kind."""
    path = tmp_path / f"weights.{request.param}"
    content = {"model": {"weight": Evil(made)}, "__author__": "somebody"}
    if request.param == "pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return path


@pytest.fixture
def config(tmp_path, tiny, made):
    """A config that holds code."""
    path = tmp_path / "evil.yaml"
    text = f"_BASE_: {tiny.plain}\nMODEL: {{WEIGHTS: !!python/object/apply:os.mkdir ['{made}']}}\n"
    path.write_text(text)
    return path


@pytest.fixture
def refused(command, made, capsys):
    """Calls a command, which must end in a sentence without running the code."""

    def call(*argv, run=command):
        with pytest.raises(SystemExit) as end:
            run(*argv)
        assert end.value.code == 2
        assert not made.exists()
        error = capsys.readouterr().err.splitlines()
        assert error and error[-1].startswith("error: ")
        return error[-1]

    return call


def predicting(*argv):
    predict.run([str(arg) for arg in argv])


def exporting(tmp_path):
    from dpk_det.engine.ends import exit_on_user_error

    def run(*argv):
        with exit_on_user_error():
            export_student(*map(str, argv), str(tmp_path / "student.pth"))

    return run


def images(tiny):
    return str(tiny.plain.parent / "images")


# ------------------------------------------------------------------ weights


def test_the_files_of_these_tests_would_run_code(weights, made):
    if weights.suffix == ".pkl":
        pickle.loads(weights.read_bytes())
    else:
        torch.load(weights, weights_only=False)
    assert made.exists()


@pytest.mark.parametrize("check", [(), ("--check",)], ids=["train", "check"])
@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "MODEL.BACKBONE_WEIGHTS"])
def test_the_weights_of_a_training_run_no_code(tiny, tmp_path, refused, weights, key, check):
    argv = ("--config-file", tiny.plain, *check, key, weights, "OUTPUT_DIR", tmp_path / "out")
    assert "is no checkpoint (it holds posix.mkdir" in refused(*argv)


def test_a_teachers_weights_run_no_code(tiny, tmp_path, refused, weights):
    opts = ("DISTILL.TEACHER.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / "out")
    assert "posix.mkdir" in refused("--config-file", tiny.dpk, *opts)


def test_evaluated_weights_run_no_code(tiny, refused, weights):
    opts = ("MODEL.WEIGHTS", weights)
    assert "posix.mkdir" in refused("--config-file", tiny.plain, "--eval-only", *opts)


def test_weights_to_predict_with_run_no_code(tiny, tmp_path, refused, weights):
    argv = ("--config-file", tiny.plain, "--weights", weights, "--input", images(tiny))
    assert "posix.mkdir" in refused(*argv, "--output", tmp_path / "found", run=predicting)


def test_weights_to_export_run_no_code(tiny, tmp_path, refused, weights):
    assert "posix.mkdir" in refused(tiny.plain, weights, run=exporting(tmp_path))


@pytest.mark.parametrize("which", ["TRAIN", "TEST"])
def test_proposals_run_no_code(tiny, tmp_path, refused, made, which):
    (tmp_path / "proposals.pkl").write_bytes(pickle.dumps({"ids": Evil(made)}))
    opts = ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", True)
    opts += (f"DATASETS.PROPOSAL_FILES_{which}", f"('{tmp_path}/proposals.pkl',)")
    for check in ((), ("--check",), ("--eval-only",)):
        assert "posix.mkdir" in refused("--config-file", tiny.plain, *check, *opts)


def test_timms_weights_run_no_code(tiny, refused, weights):
    opts = ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "test_resnet")
    argv = ("--config-file", tiny.plain, "--check", *opts, "MODEL.TIMM.WEIGHTS", weights)
    assert "are not those of timm's test_resnet" in refused(*argv)


def test_the_model_zoos_layouts_are_arrays_alone(tmp_path):
    state = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.float32(1)}
    for content in (
        {"model": state, "__author__": "Detectron2", "matching_heuristics": True},
        {"blobs": state | {"a.weight_momentum": np.zeros(2)}, "cfg": "text"},
    ):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            path = tmp_path / "w.pkl"
            path.write_bytes(pickle.dumps(content, protocol))
            with path.open("rb") as file:
                loaded = load_arrays(file)
            assert list(loaded) == list(content)
            found = loaded.get("model", loaded.get("blobs"))
            assert np.array_equal(found["a.weight"], state["a.weight"])
            assert found["a.bias"] == 1


# ------------------------------------------------------------------ configs


@pytest.mark.parametrize("option", ["--num-gpus=1", "--check", "--eval-only"])
def test_the_config_of_a_training_runs_no_code(refused, config, option):
    assert "the tag !!python" in refused("--config-file", config, option)


def test_a_teachers_config_runs_no_code(tiny, refused, config):
    opts = ("DISTILL.TEACHER.CONFIG_FILE", config)
    assert "the tag !!python" in refused("--config-file", tiny.dpk, "--check", *opts)


def test_the_config_to_predict_with_runs_no_code(tiny, tmp_path, refused, config):
    argv = ("--config-file", config, "--weights", tiny.weights, "--input", images(tiny))
    assert "the tag" in refused(*argv, "--output", tmp_path / "found", run=predicting)


def test_the_config_to_export_runs_no_code(tiny, tmp_path, refused, config):
    assert "the tag" in refused(config, tiny.weights, run=exporting(tmp_path))


@pytest.mark.parametrize("role", ["method", "teacher", "suite"])
def test_a_suite_and_the_configs_in_it_run_no_code(tiny, tmp_path, refused, config, role, made):
    files = {"method": tiny.plain, "teacher": tiny.teacher} | {role: config}
    suite = tmp_path / "suite.yaml"
    content = {
        "baseline": "plain",
        "teachers": {"big": {"config": str(files["teacher"])}},
        "methods": {"plain": {"config": str(files["method"])}},
    }
    text = yaml.safe_dump(content)
    if role == "suite":
        text += f"title: !!python/object/apply:os.mkdir ['{made}']\n"
    suite.write_text(text)

    def run(*argv):
        compare.run([str(arg) for arg in argv])

    assert "the tag !!python" in refused(suite, "--output", tmp_path / "out", run=run)
