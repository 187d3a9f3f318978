"""Trainings that are stopped and go on: equal to those that were not, bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.engine import DefaultTrainer, HookBase

from dpk_det.data.train_loader import Place
from dpk_det.engine import DistillTrainer
from dpk_det.pairing.hook import DistillHook
from dpk_det.pairing.scaling import scale_to_processes

STEPS = 6
SCHEDULE = ["SOLVER.MAX_ITER", STEPS, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2]
SCHEDULE += ["INPUT.MIN_SIZE_TRAIN", "(48, 56, 64)", "SOLVER.STEPS", "(4,)"]
TIMES = ("time", "data_time", "eta_seconds")


class Killed(BaseException):
    """As a kill, after which nothing is tidied up."""


class Killer(HookBase):
    def __init__(self, step):
        self.step = step

    def before_step(self):
        if self.trainer.iter == self.step:
            raise Killed


@pytest.fixture
def kill_before(monkeypatch):
    """``kill_before(step)`` ends the next trainings before that step; None: lets them be."""
    build_hooks = DistillTrainer.build_hooks

    def kill(step):
        monkeypatch.setattr(
            DistillTrainer,
            "build_hooks",
            lambda self: [*build_hooks(self), *([] if step is None else [Killer(step)])],
        )
        # a killed process writes no last lines and evaluates nothing
        monkeypatch.setattr(
            DistillTrainer,
            "after_train",
            lambda self: super(DistillTrainer, self).after_train() if step is None else None,
        )

    return kill


def contents(folder):
    state = torch.load(folder / "model_final.pth", weights_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return state, [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_equal(one, other, path=""):
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (x, y) in enumerate(zip(one, other, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other or one != one, path  # NaN where there is nothing to measure


def assert_same_run(one, other):
    (state, lines), (state_2, lines_2) = contents(one), contents(other)
    for content in (state, state_2):
        kept = content["trainer"]["hooks"]["Continuity"]
        for name in ("config", "resumed"):  # names the folder
            del kept[name]
    assert_equal(lines, lines_2)
    assert_equal(state, state_2)


def check_resuming(command, kill_before, folder, config, opts, kills):
    """A training that is killed before some steps, and resumed, equals one that is not."""
    args = ("--config-file", config, "--resume", *opts, "OUTPUT_DIR")
    kill_before(None)
    command(*args, folder / "whole")
    for step in kills:
        kill_before(step)
        with pytest.raises(Killed):
            command(*args, folder / "resumed")
    kill_before(None)
    torch.rand(5)
    command(*args, folder / "resumed")
    assert_same_run(folder / "whole", folder / "resumed")


METHODS = {
    "plain": [],
    "dpk": ["DISTILL.DPK.CKA_EVERY", 3],
    "dpk+kd": ["DISTILL.METHODS", "['dpk', 'kd']"],
    "reviewkd+mgd": ["DISTILL.METHODS", "['reviewkd', 'mgd']", "DISTILL.REVIEWKD.MID", 8],
    "steered, stops": [
        *("DISTILL.METHODS", "['dpk', 'pkd']", "DISTILL.STOP_AT", 0.6),
        *("DISTILL.GRAD_SHARE", 0.3, "DISTILL.GRAD_SHARE_EVERY", 2),
    ],
}


@pytest.mark.parametrize(
    ("kind", "workers", "kills"),
    [
        ("plain", 2, [3]),
        ("dpk", 0, [3, 5]),
        ("dpk+kd", 0, [5]),
        ("reviewkd+mgd", 0, [3]),
        ("steered, stops", 0, [3, 5]),
    ],
)
def test_a_resumed_detector_equals_one_that_was_not_stopped(
    tiny, tmp_path, command, kill_before, kind, workers, kills
):
    config = tiny.plain if kind == "plain" else tiny.dpk
    opts = [*SCHEDULE, *METHODS[kind], "DATALOADER.NUM_WORKERS", workers]
    check_resuming(command, kill_before, tmp_path, config, opts, kills)
    results = json.loads((tmp_path / "resumed" / "results.json").read_text())
    assert results["resumed"] == [{"step": step - step % 2, "exact": True} for step in kills]
    assert json.loads((tmp_path / "whole" / "results.json").read_text())["resumed"] == []


@pytest.mark.parametrize(
    "more", [[], ["INPUT.IMAGES.IN_MEMORY", False, "DATALOADER.NUM_WORKERS", 2]]
)
def test_a_resumed_classifier_equals_one_that_was_not_stopped(
    tiny_images, tmp_path, command, kill_before, more
):
    methods = ["DISTILL.METHODS", "['dpk', 'kd']", "DISTILL.WARMUP_ITERS", 5]
    opts = ["SOLVER.MAX_ITER", STEPS, "SOLVER.CHECKPOINT_PERIOD", 2, *methods, *more]
    check_resuming(command, kill_before, tmp_path, tiny_images.dpk, opts, [5])


def test_a_negative_seed_is_kept(tiny, tmp_path, command, kill_before):
    opts = (*SCHEDULE, "SEED", -1, "OUTPUT_DIR", tmp_path)
    kill_before(5)
    with pytest.raises(Killed):
        command("--config-file", tiny.plain, *opts)
    trainer = DistillTrainer(tiny.cfg("plain", *opts))
    drawn = trainer.data_loader.place.seed
    trainer.resume_or_load()
    state = torch.load(tmp_path / "model_0000003.pth")["trainer"]["hooks"]["Continuity"]
    assert trainer.data_loader.place.seed == state["place"]["seed"] != drawn
    assert torch.equal(torch.get_rng_state(), state["random"][0]["torch"])


def test_precise_batchnorm_goes_on_in_its_own_data(tiny, tmp_path, command, kill_before):
    opts = [*SCHEDULE, "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 3]
    opts += ["MODEL.RESNETS.NORM", "BN"]
    check_resuming(command, kill_before, tmp_path, tiny.plain, opts, [5])


# ------------------------------------------------------------------ what may change


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory, in_command):
    """The folder of a distilling training that was killed after its checkpoint of step 2."""
    folder = tmp_path_factory.mktemp("stopped")
    with in_command() as run:
        opts = ("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1, "OUTPUT_DIR", folder)
        run("--config-file", tiny.dpk, *opts)
    for name in ("model_final.pth", "results.json"):
        (folder / name).unlink()
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    return folder


@pytest.fixture
def resume(tiny, stopped, tmp_path, command):
    """``resume(KEY, VALUE, ...)`` goes on with a copy of ``stopped``, in ``resume.folder``."""
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)

    def run(*opts):
        command("--config-file", tiny.dpk, "--resume", "OUTPUT_DIR", folder, *opts)
        return json.loads((folder / "results.json").read_text())

    run.folder = folder
    return run


def error_of(capsys, function, *args):
    with pytest.raises(SystemExit) as stop:
        function(*args)
    assert stop.value.code == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_rates_and_decay_follow_the_config_and_momentum_the_checkpoint(tiny, resume):
    opts = ("SOLVER.BASE_LR", 0.005, "SOLVER.WEIGHT_DECAY", 0.3, "SOLVER.STEPS", "(1,)")
    opts += ("SOLVER.WEIGHT_DECAY_NORM", 0.2, "SOLVER.FUSED", True, "SOLVER.MAX_ITER", 4)
    trainer = DistillTrainer(tiny.cfg("dpk", *opts, "OUTPUT_DIR", resume.folder))
    trainer.resume_or_load()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.0005}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.3, 0.2}
    assert all(group["fused"] for group in trainer.optimizer.param_groups)
    saved = torch.load(resume.folder / "model_0000001.pth")["trainer"]
    names = saved["hooks"]["Continuity"]["parameters"]
    momenta = dict(zip(names, saved["_trainer"]["optimizer"]["state"].values(), strict=True))
    parameters = dict(trainer.model.named_parameters())
    for name, state in momenta.items():
        mine = trainer.optimizer.state[parameters[name]]["momentum_buffer"]
        assert torch.equal(mine, state["momentum_buffer"])
    assert trainer.scheduler.last_epoch == 2 and set(trainer.scheduler.base_lrs) == {0.005}


def test_a_changed_rate_is_followed_and_marked(resume):
    times = resume("SOLVER.BASE_LR", 0.005, "SOLVER.MAX_ITER", 3, "DISTILL.DPK.WEIGHT", 2.0)
    why = "DISTILL.DPK.WEIGHT was changed; SOLVER.BASE_LR was changed; SOLVER.MAX_ITER was changed"
    assert times["resumed"] == [{"step": 2, "exact": False, "why": why}]
    lines = (resume.folder / "metrics.json").read_text().splitlines()
    assert json.loads(lines[0])["lr"] == 0.005


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DISTILL.METHODS", ["dpk", "kd"]),
        ("DISTILL.LEVELS", ["p2"]),
        ("DISTILL.DPK.DIM", 8),
        ("DISTILL.INHERIT", True),
        ("MODEL.SMALL_RESNET.WIDTHS", [4, 8, 16]),
        ("MODEL.FPN.OUT_CHANNELS", 8),
        ("MODEL.BACKBONE.FREEZE_AT", 1),
        ("INPUT.FORMAT", "RGB"),
        ("SEED", 2),
    ],
)
def test_what_cannot_change_is_refused_by_its_name(tiny, resume, capsys, key, value):
    config = (resume.folder / "config.yaml").read_text()
    error = error_of(capsys, resume, "SOLVER.MAX_ITER", 4, key, value)
    old = tiny.cfg("dpk")
    for part in key.split("."):
        old = old[part]
    assert f"{key} is {value!r} but was {old!r} when" in error
    assert f"{resume.folder}/model_0000001.pth was trained, and cannot change" in error
    assert (resume.folder / "config.yaml").read_text() == config


def test_another_teacher_is_refused_but_not_another_path(tiny, resume, tmp_path, capsys):
    key = "DISTILL.TEACHER.WEIGHTS"
    state = torch.load(tiny.weights)
    torch.save(state, tmp_path / "copy.pth")
    assert resume("SOLVER.MAX_ITER", 2, key, tmp_path / "copy.pth")["resumed"][0]["exact"]
    state["model"]["backbone.fpn_output3.weight"] += 1
    torch.save(state, tmp_path / "other.pth")
    opts = ("SOLVER.MAX_ITER", 3, key, tmp_path / "other.pth")
    assert "The teacher's weights are not those that" in error_of(capsys, resume, *opts)


def test_fewer_steps_than_were_made_are_refused(resume, capsys):
    error = error_of(capsys, resume, "SOLVER.MAX_ITER", 1)
    assert "SOLVER.MAX_ITER is 1 but" in error and "has made 2 steps: raise it" in error


def test_a_finished_training_is_left_alone(tiny, trained, tmp_path, command, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    command("--config-file", tiny.dpk, "--resume", "OUTPUT_DIR", folder)
    line = f"{folder} is trained to its end, 3 steps: raise SOLVER.MAX_ITER to go on."
    assert line in capsys.readouterr().out
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_another_batch_goes_on_at_the_same_image(tiny, stopped, resume):
    cfg = tiny.cfg("dpk", "SOLVER.IMS_PER_BATCH", 4, "OUTPUT_DIR", resume.folder)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load()
    assert trainer.data_loader.place == Place(trainer.data_loader.place.seed, 2, 4)
    assert trainer.data_loader.images_before(3) == 8
    record = trainer.continuity.resumed[0]
    assert not record["exact"] and "2 images per step became 4" in record["why"]


def test_what_older_versions_saved_is_gone_on_from(resume):
    path = resume.folder / "model_0000001.pth"
    saved = torch.load(path)
    del saved["trainer"]["hooks"]["Continuity"]
    torch.save(saved, path)
    results = resume("SOLVER.MAX_ITER", 4)
    assert results["iterations"] == 4
    why = "the checkpoint is of an older version"
    assert results["resumed"] == [{"step": 2, "exact": False, "why": why}]


def test_amp_may_come_and_go(resume):
    path = resume.folder / "model_0000001.pth"
    saved = torch.load(path)
    saved["trainer"]["_trainer"]["grad_scaler"] = {"scale": 65536.0}
    torch.save(saved, path)
    resume("SOLVER.MAX_ITER", 3)
    log = (resume.folder / "log.txt").read_text()
    assert "SOLVER.AMP.ENABLED is False and was True before" in log


def test_mixed_precision_begins_anew_where_there_was_none(tiny, resume, monkeypatch):
    trainer = DistillTrainer(tiny.cfg("dpk", "OUTPUT_DIR", resume.folder))
    trainer._trainer.grad_scaler = scaler = torch.amp.GradScaler("cpu")
    trainer.resume_or_load()
    assert scaler.get_scale() == torch.amp.GradScaler("cpu").get_scale()


def test_warm_up_is_scaled_to_the_processes(tiny, monkeypatch):
    opts = ("SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.MAX_ITER", 100, "DISTILL.WARMUP_ITERS", 10)
    cfg = tiny.cfg("dpk", *opts)
    cfg.freeze()
    scaled = scale_to_processes(cfg)  # one process for two
    assert (scaled.SOLVER.MAX_ITER, scaled.DISTILL.WARMUP_ITERS) == (200, 20)
    assert cfg.DISTILL.WARMUP_ITERS == 10 and scaled.is_frozen()
    assert scale_to_processes(scaled) is scaled


def test_the_trainer_and_the_hook_scale_the_warm_up(tiny, tmp_path, command):
    opts = ("SOLVER.REFERENCE_WORLD_SIZE", 2, "DISTILL.WARMUP_ITERS", 10, "OUTPUT_DIR", tmp_path)
    trainer = DistillTrainer(tiny.cfg("dpk", *opts))
    assert trainer.model.distillation.schedule.warmup_iters == 20
    assert DistillHook.from_config(tiny.cfg("dpk", *opts)).schedule["warmup_iters"] == 20


# ------------------------------------------------------------------ what is found in the folder


def test_a_start_in_a_used_folder_is_refused(tiny, stopped, command, capsys):
    for flag in ((), ("--check",)):
        args = ("--config-file", tiny.dpk, *flag, "OUTPUT_DIR", stopped)
        error = error_of(capsys, command, *args)
        assert f"OUTPUT_DIR {stopped} holds the checkpoints of another training" in error
        assert "add --resume to go on with it" in error


def test_a_final_model_is_made_whatever_a_kill_left_of_it(resume):
    (resume.folder / "model_final.pth").write_bytes(b"")
    results = resume("SOLVER.MAX_ITER", 2)
    assert results["results"]["bbox"]["AP"] is not None
    assert results["resumed"] == [{"step": 2, "exact": True}]
    final, last = (
        torch.load(resume.folder / name) for name in ("model_final.pth", "model_0000001.pth")
    )
    assert_equal(final["model"], last["model"])
    assert_equal(final["trainer"]["_trainer"], last["trainer"]["_trainer"])
    assert (resume.folder / "last_checkpoint").read_text() == "model_final.pth"


def test_lines_of_metrics_after_the_checkpoint_are_cut(resume):
    whole, half = '{"iteration": 7, "total_loss": 1.0}\n', '{"iteration": 9, "tot'
    with (resume.folder / "metrics.json").open("a") as file:
        file.write(whole + half)
    resume("SOLVER.MAX_ITER", 4)
    lines = [json.loads(x) for x in (resume.folder / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [3, 4]


def test_evaluating_with_resume_takes_the_last_checkpoint(tiny, resume, command):
    args = ("--config-file", tiny.dpk, "--eval-only", "--resume", "OUTPUT_DIR", resume.folder)
    assert command(*args, "MODEL.WEIGHTS", "gone.pth")["bbox"]
    (resume.folder / "model_0000001.pth").write_bytes(b"damage")
    assert command(*args)["bbox"]


def test_the_config_is_never_half_written(tiny, tmp_path, command, monkeypatch):
    def fail(self, target):
        raise Killed

    (tmp_path / "config.yaml").write_text("VERSION: 2\n")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(Killed):
        command("--config-file", tiny.plain, "OUTPUT_DIR", tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "VERSION: 2\n"


# three trainings in each of two processes: one that is not stopped, and one that is and goes on
WORKER = """
import json, sys
import torch
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.utils import comm
from dpk_det.engine import DistillTrainer
from dpk_det.engine.folder import set_up
from dpk_det.engine.launch import launch
from dpk_det.engine.train import parse_args, setup

class Stop(HookBase):
    def before_step(self):
        if self.trainer.iter == 3:
            raise KeyError("killed")

def main(args):
    root = args.opts[args.opts.index("OUTPUT_DIR") + 1]
    left = {}
    for name, stops in (("whole", False), ("resumed", True), ("resumed", False)):
        args.opts = [*args.opts, "OUTPUT_DIR", f"{root}/{name}"]
        cfg = setup(args)
        set_up(cfg, args)
        trainer = DistillTrainer(cfg)
        trainer.resume_or_load()
        trainer.register_hooks([Stop()] * stops)
        try:
            trainer.train()
        except KeyError:
            pass
        left[name] = torch.rand(3).tolist()
    with open(f"{root}/rank{comm.get_rank()}.json", "w") as file:
        json.dump(left, file)

launch(main, parse_args())
"""


def test_two_ranks_go_on_as_if_they_had_not_stopped(two_processes, tmp_path):
    ranks = two_processes(WORKER, *(str(x) for x in SCHEDULE), "DATALOADER.NUM_WORKERS", "1")
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")
    assert all(left["whole"] == left["resumed"] for left in ranks)
    assert ranks[0]["whole"] != ranks[1]["whole"]
    results = json.loads((tmp_path / "resumed" / "results.json").read_text())
    assert results["resumed"] == [{"step": 2, "exact": True}]


def test_an_evaluation_draws_no_random_numbers_of_the_training(monkeypatch):
    monkeypatch.setattr(DefaultTrainer, "test", classmethod(lambda cls: torch.rand(3)))
    state = torch.get_rng_state()
    DistillTrainer.test()
    assert torch.equal(torch.get_rng_state(), state)
