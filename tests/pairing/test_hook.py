"""Detectron2's own trainer with the hook, against the same trainer on a model that distils."""

import itertools
import json
import logging
import os

import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from dpk_det import DistillHook, load_teacher
from dpk_det.checkpoint.loading import load_weights_strictly
from dpk_det.engine import DistillTrainer
from dpk_det.errors import UserError

PLAIN = ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
SOLVER = (
    *("SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 0.02, "SOLVER.WARMUP_ITERS", 2),
    *("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "DATASETS.TEST", "()"),
)
DPK = {"dpk": {"token_stride": 16, "dim": 16, "heads": 2}}


class Watch:
    """Keeps the losses of each step."""

    def run_step(self):
        self.seen = getattr(self, "seen", [])
        keep = self.model.register_forward_hook(lambda *args: self.seen.append(args[-1]))
        super().run_step()
        keep.remove()


class Watched(Watch, DefaultTrainer):
    """Detectron2's."""


class WatchedOwn(Watch, DistillTrainer):
    """The project's, which is given the images that Detectron2's own is."""

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg)


@pytest.fixture
def config(tiny, tmp_path, command):
    """``config(opts...)``; ``command`` is here to tidy up the loggers."""
    folders = itertools.count()

    def config(*opts):
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        return tiny.cfg("dpk", *SOLVER, "OUTPUT_DIR", folder, *opts)

    return config


def reference(cfg, trainer=Watched):
    """A trainer whose model distils before there is an optimizer."""
    seed_all_rng(1)
    return trainer(cfg)


def hooked(cfg, trainer=Watched):
    """A trainer of the plain model, with the hook."""
    seed_all_rng(1)
    trainer = trainer(cfg)
    assert not hasattr(trainer.model, "distillation")
    trainer.register_hooks([DistillHook.from_config(cfg)])
    return trainer


def weights_after(trainer):
    """The weights that the last step leaves, the distiller's as well."""
    seed_all_rng(2)
    state = {}
    model = trainer.model
    trainer._hooks[0].after_train = lambda: state.update(
        {name: x.clone() for name, x in model.state_dict().items()}
    )
    trainer.train()
    return state


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def groups(trainer):
    """Name of each parameter to what the optimizer does with it."""
    names = {p: name for name, p in trainer.model.named_parameters()}
    return {
        names[p]: {key: value for key, value in group.items() if key != "params"}
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }


# ------------------------------------------------------------------ what is trained


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01),
        ("SOLVER.BIAS_LR_FACTOR", 3.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.1, "SOLVER.WEIGHT_DECAY", 0.3),
        ("DISTILL.METHODS", "['dpk', 'fgd', 'dkd']", "DISTILL.LEVELS", "['p3', 'p4']"),
        ("DISTILL.METHODS", "['kd']"),  # has no weights of its own
        # both know how far the training is
        ("DISTILL.DPK.RATIO", "cosine", "DISTILL.WARMUP_ITERS", 6),
    ],
    ids=["default", "clipping", "biases", "methods", "weightless", "schedule"],
)
def test_training_is_that_of_a_model_attached_before_its_optimizer_is_built(config, opts):
    one, other = reference(config(*opts)), hooked(config(*opts, *PLAIN))
    assert_same(one.model.state_dict(), other.model.state_dict())
    assert groups(one) == groups(other)
    assert_same(weights_after(one), weights_after(other))
    assert len(one.seen) == len(other.seen) == 4
    for mine, theirs in zip(one.seen, other.seen, strict=True):
        assert {"loss_dpk", "loss_kd_roi"} & mine.keys()
        assert_same(mine, theirs)


def test_inheriting_comes_after_other_weights_as_with_the_projects_own_trainer(
    tiny, config, tmp_path
):
    torch.save({"model": tiny.build("plain", seed=11).state_dict()}, tmp_path / "start.pth")
    opts = ("DISTILL.INHERIT", True, "MODEL.WEIGHTS", tmp_path / "start.pth")
    one, other = reference(config(*opts), WatchedOwn), hooked(config(*opts, *PLAIN))
    for trainer in (one, other):
        trainer.resume_or_load(resume=False)
    assert_same(weights_after(one), weights_after(other))
    for mine, theirs in zip(one.seen, other.seen, strict=True):
        assert_same(mine, theirs)


class Own(Watched):
    """A project with an optimizer of its own, its scheduler by name."""

    name = ""

    @classmethod
    def build_optimizer(cls, cfg, model):
        return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.2)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        schedulers = torch.optim.lr_scheduler
        if cls.name == "OneCycleLR":
            return schedulers.OneCycleLR(optimizer, [0.01] * len(optimizer.param_groups), 10)
        if cls.name == "LambdaLR":
            return schedulers.LambdaLR(optimizer, lambda i: 1 / (i + 2))
        return schedulers.LinearLR(optimizer, 0.1, total_iters=3)


@pytest.mark.parametrize("name", ["OneCycleLR", "LambdaLR", "LinearLR"])
def test_the_trainers_own_optimizer_and_scheduler_decide(config, monkeypatch, name):
    monkeypatch.setattr(Own, "name", name)
    one, other = reference(config(), Own), hooked(config(*PLAIN), Own)
    rates = [trainer.optimizer.param_groups[0]["lr"] for trainer in (one, other)]
    assert rates[0] == rates[1] == other.optimizer.param_groups[-1]["lr"] != 3e-3
    assert_same(weights_after(one), weights_after(other))


def test_parts_are_as_good_as_a_config(tiny, config):
    cfg = config(*PLAIN, "DISTILL.LEVELS", "['p3']")
    one = hooked(cfg)
    seed_all_rng(1)
    other = Watched(cfg)
    teacher = load_teacher(str(tiny.teacher), str(tiny.weights))
    other.register_hooks([DistillHook(teacher, DPK, ["p3"])])
    assert_same(one.model.state_dict(), other.model.state_dict())
    assert groups(one) == groups(other)
    assert other.model.distillation.schedule.max_iter == 4


class InMixedPrecision(Watched):
    """On a GPU DefaultTrainer would do this for ``SOLVER.AMP.ENABLED``."""

    def __init__(self, cfg):
        super().__init__(cfg)
        old = self._trainer
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        self._trainer = AMPTrainer(old.model, old.data_loader, old.optimizer, grad_scaler=scaler)


def test_mixed_precision(config, monkeypatch):
    def on_cpu(*args, **kwargs):
        return torch.autocast("cpu", dtype=torch.bfloat16)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.amp, "autocast", on_cpu)
    monkeypatch.setattr(torch.cuda.amp, "autocast", on_cpu)  # of newer Detectron2s
    one = reference(config(), InMixedPrecision)
    other = hooked(config(*PLAIN), InMixedPrecision)
    plain = reference(config())
    before = {name: x.clone() for name, x in other.model.state_dict().items()}
    after = weights_after(other)
    assert_same(weights_after(one), after)
    assert other._trainer.grad_scaler.get_scale() == 1024  # no step was skipped
    plain = weights_after(plain)
    name = "distiller.methods.dpk.completions.p2.student_embed.weight"
    moved, in_full = (x[name] - before[name] for x in (after, plain))
    # the gradients were scaled back before the step, the distiller's too
    assert moved.norm() == pytest.approx(in_full.norm().item(), rel=0.1)
    assert not torch.equal(moved, in_full)


# ------------------------------------------------------------------ what is left


def test_after_training_model_and_optimizer_are_the_plain_ones(tiny, config, batch):
    cfg = config(*PLAIN)
    plain = Watched(cfg)
    before = groups(plain)
    rates = list(plain.scheduler.base_lrs)
    trainer = hooked(cfg)
    assert len(trainer.scheduler.base_lrs) > len(rates)
    trained = weights_after(trainer)
    model = trainer.model
    assert not hasattr(model, "distiller") and not hasattr(model, "distillation")
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert_same(
        model.state_dict(), {k: v for k, v in trained.items() if not k.startswith("distiller.")}
    )
    assert groups(trainer).keys() == before.keys() == dict(model.named_parameters()).keys()
    assert set(trainer.optimizer.state) == set(model.parameters())
    assert trainer.scheduler.base_lrs == rates
    # the checkpoint is that of the last step: a plain model takes what is its own, and every bit
    path = f"{cfg.OUTPUT_DIR}/model_final.pth"
    other = tiny.build("plain", seed=5)
    load_weights_strictly(other, path, "WEIGHTS")
    assert_same(other.state_dict(), model.state_dict())
    assert_same(torch.load(path)["model"], trained)


def test_ratio_and_losses_are_logged(config):
    cfg = config(*PLAIN)
    hooked(cfg).train()
    with open(f"{cfg.OUTPUT_DIR}/metrics.json") as f:
        line = json.loads(f.readlines()[-1])
    assert {"loss_dpk", "loss_cls", "dpk/ratio_p2", "dpk/cka_p4"} <= line.keys()


def test_pairs_parameters_and_what_was_inherited_are_in_detectron2s_log(config, monkeypatch):
    # DefaultTrainer sets up the logger "detectron2" alone
    for name, value in (("handlers", []), ("propagate", False)):
        monkeypatch.setattr(logging.getLogger("dpk_det"), name, value)
    cfg = config(*PLAIN, "DISTILL.INHERIT", True)
    setup_logger(cfg.OUTPUT_DIR)
    trainer = hooked(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    with open(f"{cfg.OUTPUT_DIR}/log.txt") as f:
        lines = [line.split(" INFO: ")[1] for line in f if " dpk_det INFO: " in line]
    assert len(lines) == 2
    assert lines[0].startswith("GeneralizedRCNN learns by dpk from a GeneralizedRCNN teacher: p2 ")
    assert lines[1].startswith("Inherited 18 weights of the teacher: ")


class Failing(Watched):
    def run_step(self):
        super().run_step()
        if self.iter == 2:
            raise FloatingPointError("diverged")


def test_a_training_that_fails_leaves_the_plain_model_and_its_last_checkpoint(config):
    cfg = config(*PLAIN, "SOLVER.CHECKPOINT_PERIOD", 2)
    trainer = hooked(cfg, Failing)
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert not hasattr(trainer.model, "distiller")
    assert sorted(x for x in os.listdir(cfg.OUTPUT_DIR) if x.endswith(".pth")) == [
        "model_0000001.pth"
    ]
    with open(f"{cfg.OUTPUT_DIR}/last_checkpoint") as f:
        assert f.read() == "model_0000001.pth"
    saved = torch.load(f"{cfg.OUTPUT_DIR}/model_0000001.pth", weights_only=False)["model"]
    again = hooked(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 2
    assert_same(again.model.state_dict(), saved)
    again.train()
    assert len(again.seen) == 2


# ------------------------------------------------------------------ resuming


class Resumable(Watched):
    """As upstream's newest: checkpoints keep the optimizer. The steps do not depend on the past."""

    @classmethod
    def build_train_loader(cls, cfg):
        return itertools.repeat(cls.batch)

    def run_step(self):
        torch.manual_seed(self.iter)
        super().run_step()

    def state_dict(self):
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])


def test_a_resumed_training_equals_an_uninterrupted_one(config, batch, monkeypatch):
    monkeypatch.setattr(Resumable, "batch", batch, raising=False)
    opts = (*PLAIN, "SOLVER.CHECKPOINT_PERIOD", 2, "DISTILL.INHERIT", True)
    cfg = config(*opts)
    trainer = hooked(cfg, Resumable)
    trainer.resume_or_load(resume=False)
    uninterrupted = weights_after(trainer)
    with open(f"{cfg.OUTPUT_DIR}/last_checkpoint", "w") as f:
        f.write("model_0000001.pth")
    seed_all_rng(5)  # what is drawn anew must not matter
    resumed = Resumable(cfg)
    resumed.register_hooks([DistillHook.from_config(cfg)])
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    assert_same(weights_after(resumed), uninterrupted)
    assert len(resumed.seen) == 2


def test_without_a_checkpoint_resuming_starts_and_inherits(tiny, config):
    trainer = hooked(config(*PLAIN, "DISTILL.INHERIT", True))
    trainer.resume_or_load(resume=True)
    trainer.before_train = lambda: [hook.before_train() for hook in trainer._hooks]
    head = "roi_heads.box_head.fc1.weight"
    given = torch.load(tiny.weights)["model"][head]
    assert not torch.equal(trainer.model.state_dict()[head], given)
    trainer._hooks[-1].before_train()
    assert torch.equal(trainer.model.state_dict()[head], given)


# ------------------------------------------------------------------ mistakes


def test_resuming_a_training_that_did_not_distil_is_an_error(config):
    cfg = config(*PLAIN, "SOLVER.CHECKPOINT_PERIOD", 2)
    reference(cfg).train()
    with open(f"{cfg.OUTPUT_DIR}/last_checkpoint", "w") as f:
        f.write("model_0000001.pth")
    trainer = hooked(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    with pytest.raises(UserError, match=r"iteration 2 did not distil.*MODEL.WEIGHTS"):
        trainer.train()


def test_registering_after_resuming_is_an_error(config):
    cfg = config(*PLAIN, "SOLVER.CHECKPOINT_PERIOD", 1)
    reference(cfg).train()
    with open(f"{cfg.OUTPUT_DIR}/last_checkpoint", "w") as f:
        f.write("model_0000000.pth")
    trainer = Watched(cfg)
    trainer.resume_or_load(resume=True)
    with pytest.raises(UserError, match=r"iteration 1: register it before resume_or_load\(\)"):
        trainer.register_hooks([DistillHook.from_config(cfg)])
    assert not hasattr(trainer.model, "distiller")


def test_a_trainer_without_the_default_ones_methods_is_an_error(tiny, batch):
    model = tiny.build("plain")
    trainer = SimpleTrainer(model, [batch], torch.optim.SGD(model.parameters(), lr=0.1))
    hook = DistillHook.from_config(tiny.cfg("dpk"))
    with pytest.raises(UserError, match=r"with another trainer, or none, call dpk_det\.distil"):
        trainer.register_hooks([hook])


def test_training_a_second_time_is_an_error(config):
    trainer = hooked(config(*PLAIN))
    trainer.train()
    with pytest.raises(UserError, match="build a new trainer and register a new hook"):
        trainer.before_train()
    trainer._hooks[-1].after_train()  # nothing is left to be taken off


def test_a_model_that_distils_by_its_config_needs_no_hook(config):
    with pytest.raises(UserError, match="distils already"):
        trainer = Watched(config())
        trainer.register_hooks([DistillHook.from_config(trainer.cfg)])


def test_a_teacher_that_was_told_another_channel_order_is_an_error(tiny, config):
    trainer = Watched(config(*PLAIN, "INPUT.FORMAT", "RGB"))
    del trainer.model.input_format  # FCOS has none, so that the config alone says it
    hook = DistillHook(load_teacher(str(tiny.teacher), str(tiny.weights)), DPK)
    with pytest.raises(UserError, match=r"are RGB but .* BGR: .*student_format='RGB'"):
        trainer.register_hooks([hook])
    assert not hasattr(trainer.model, "distiller")


def test_a_config_without_the_projects_keys_is_an_error():
    from detectron2.config import get_cfg

    with pytest.raises(UserError, match=r"no DISTILL node: call dpk_det\.add_dpk_config"):
        DistillHook.from_config(get_cfg())


# ------------------------------------------------------------------ several processes

WORKER = """
import hashlib, json, sys
from pathlib import Path
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_setup, defaults
from detectron2.utils import comm
from dpk_det import DistillHook
from dpk_det.engine import launch
from dpk_det.engine.train import parse_args, setup

defaults.collect_env_info = lambda: ""  # takes seconds

class Watched(DefaultTrainer):
    def run_step(self):
        super().run_step()
        self.states.append(digest(self.model.module))
        if self.iter == self.fails_at:
            raise FloatingPointError

def digest(model):
    tensors = [x.detach().numpy().tobytes() for x in model.state_dict().values()]
    return hashlib.sha256(b"".join(tensors)).hexdigest()

def build(cfg, args, name):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = name
    default_setup(cfg, args)
    trainer = Watched(cfg)
    trainer.states, trainer.fails_at = [], -1
    return trainer

def gradients(model, batch):
    from detectron2.utils.events import EventStorage
    model.zero_grad()
    with EventStorage():
        sum(model(batch).values()).backward()
    grads = [p.grad.numpy().tobytes() for p in model.parameters()]
    return hashlib.sha256(b"".join(grads)).hexdigest()

def main(args):
    cfg = setup(args)
    trainer = build(cfg, args, "DistillRCNN")
    trainer.train()
    out = {"reference": trainer.states}

    trainer = build(cfg, args, "GeneralizedRCNN")
    old = trainer.model
    old.register_comm_hook(None, allreduce_hook)
    trainer.register_hooks([DistillHook.from_config(cfg)])
    out["anew"] = trainer.model is not old
    del old
    trainer.train()
    out["hooked"] = trainer.states
    model = trainer.model
    out["wrapped"] = isinstance(model, DistributedDataParallel)
    out["buffers"] = model.broadcast_buffers
    out["hooks"] = [hook.__name__ for hook, _ in model._comm_hooks]
    out["keys"] = [key for key in model.state_dict() if "distiller" in key]
    batch = next(iter(trainer.data_loader))
    out["images"] = sorted(x["image_id"] for x in batch)
    out["gradients"] = gradients(model, batch)

    trainer = build(cfg, args, "GeneralizedRCNN")
    trainer.register_hooks([DistillHook.from_config(cfg)])
    trainer.fails_at = 0 if comm.get_rank() == 0 else -1
    trainer.max_iter = 1
    try:
        trainer.train()
    except FloatingPointError:
        pass
    if comm.get_rank() == 0:  # the other wraps its model anew, which takes this process as well
        left = trainer.model
        out["after_failing"] = [hasattr(left, "module"), hasattr(left, "distiller")]
        DistributedDataParallel(left, broadcast_buffers=False)
    Path(cfg.OUTPUT_DIR, f"rank{comm.get_rank()}.json").write_text(json.dumps(out))

if __name__ == "__main__":
    args = parse_args()
    launch(main, args)
"""


def test_in_two_processes_the_model_is_wrapped_anew_and_stays_in_step(two_processes):
    one, other = two_processes(WORKER, "SOLVER.MAX_ITER", "3", "DATASETS.TEST", "()")
    assert one["hooked"] == other["hooked"] and len(set(one["hooked"])) == 3
    assert one["hooked"] == one["reference"]
    assert one["anew"] and one["wrapped"] and not one["buffers"]
    assert one["hooks"] == ["allreduce_hook"]
    assert one["keys"] == []
    assert not set(one["images"]) & set(other["images"])
    assert one["gradients"] == other["gradients"]
    assert one["after_failing"] == [False, False]
