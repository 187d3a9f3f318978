"""The snippets of docs/extending.md do what the page says."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from dpk_det import attach_from_config, distil, load_teacher
from dpk_det.architectures import plain_architecture
from dpk_det.distill import DISTILLERS
from dpk_det.errors import UserError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/extending.md"
PLAIN = ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "DATASETS.TEST", "()")


@pytest.fixture
def snippet(tiny):
    """``snippet(heading, n)``: the n-th piece of code below a heading, the tiny teacher in it."""
    before = dict(DISTILLERS)

    def snippet(heading, n=0):
        section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
        code = re.findall(r"```python\n(.*?)```", section, re.S)[n]
        code = code.replace("my_teacher.yaml", str(tiny.teacher))
        return code.replace("my_teacher.pth", str(tiny.weights))

    yield snippet
    DISTILLERS.clear()
    DISTILLERS.update(before)


def train_step(model, batch):
    with EventStorage():
        return model.train()(batch)


def test_the_hook(snippet, tiny, tmp_path, command, monkeypatch):
    cfg = tiny.cfg("dpk", *PLAIN, "OUTPUT_DIR", tmp_path)
    seen = []
    step = DefaultTrainer.run_step
    monkeypatch.setattr(
        DefaultTrainer, "run_step", lambda self: (step(self), seen.append(self.storage.latest()))
    )
    names = {"cfg": cfg, "args": argparse.Namespace(resume=False)}
    exec(snippet("A hook for the default trainer"), names)
    assert len(seen) == 3 and all("loss_dpk" in x for x in seen)
    assert not hasattr(names["trainer"].model, "distiller")


def test_the_lazy_call(snippet, tiny, batch, tmp_path):
    start = f"""
from detectron2.config import LazyCall
from detectron2.modeling import build_model
from dpk_det.config.loading import load_config

def network(config_file):
    return build_model(load_config(config_file))

model = LazyCall(network)(config_file={str(tiny.plain)!r})
train = dict(max_iter=70)
"""
    path = tmp_path / "student.py"
    path.write_text(start + snippet("A call in a LazyConfig"))
    cfg = LazyConfig.load(str(path))
    LazyConfig.apply_overrides(cfg, ["model.methods.dpk.weight=6", "model.levels=[p4]"])
    model = instantiate(cfg.model)
    method = model.distiller.methods["dpk"]
    assert method.weight == 6 and [x.student for x in method.levels] == ["p4"]
    assert model.distillation.schedule.max_iter == 70
    assert "loss_dpk" in train_step(model, batch)


def test_the_loop(snippet, tiny, batch):
    model, names = tiny.build("plain"), {"cfg": tiny.cfg("plain")}
    keys = list(model.state_dict())
    names |= {"model": model.train(), "batches": [batch, batch]}
    first = model.backbone.bottom_up.stem.conv1.weight.detach().clone()
    exec(snippet("A call in a loop"), names)
    assert {"loss_dpk", "loss_dkd_roi", "loss_cls"} <= names["losses"].keys()
    assert list(model.state_dict()) == keys and not hasattr(model, "distillation")
    assert not torch.equal(model.backbone.bottom_up.stem.conv1.weight, first)


def test_the_parts(snippet, tiny, batch):
    model, teacher = tiny.build("plain"), load_teacher(str(tiny.teacher), str(tiny.weights))
    exec(snippet("A call in a loop", 1), {"model": model, "teacher": teacher})
    assert "loss_pkd" in train_step(model, batch)


def test_a_method_of_ones_own(snippet, tiny, batch):
    with pytest.raises(UserError, match="no distiller named 'attention'"):
        attach_from_config(tiny.build("plain"), tiny.cfg("dpk", "DISTILL.METHODS", "['attention']"))
    exec(snippet("A method of one's own"), {})
    teacher = load_teacher(str(tiny.teacher), str(tiny.weights))
    model = distil(tiny.build("plain"), teacher, {"attention": {"weight": 3.0}}, ["p3"])
    maps = []
    model.backbone.register_forward_hook(lambda *args: maps.append(args[-1]["p3"]))
    losses = train_step(model, batch)
    # by loops, over the cells that are no padding
    expected = 0.0
    sees = teacher(batch)
    for i, (height, width) in enumerate(sees.image_sizes):
        vectors = []
        for x in (maps[0][i], sees.maps["p3"][i]):
            cells = [
                (x[:, r, c] ** 2).mean() for r in range(height // 8) for c in range(width // 8)
            ]
            vectors.append(torch.stack(cells) / torch.stack(cells).norm())
        expected += ((vectors[0] - vectors[1]) ** 2).sum() / len(batch)
    assert losses["loss_attention"].item() == pytest.approx(3 * expected.item(), rel=1e-4)
    assert model.distiller.metrics["attention/loss_p3"].item() == pytest.approx(expected.item())
    losses["loss_attention"].backward()
    assert model.backbone.bottom_up.stem.conv1.weight.grad.abs().max() > 0


def test_a_method_of_ones_own_in_a_config(snippet, tiny, batch):
    exec(snippet("A method of one's own"), {})
    opts = ("DISTILL.METHODS", "['attention', 'pkd']", "DISTILL.ATTENTION.WEIGHT", 7)
    model = attach_from_config(tiny.build("plain"), tiny.cfg("dpk", *opts))
    assert model.distiller.methods["attention"].weight == 7
    assert {"loss_attention", "loss_pkd"} <= train_step(model, batch).keys()


@pytest.fixture(scope="module")
def outside(tiny, tmp_path_factory):
    """A folder outside the repository with the page's files, upon the tiny configs."""
    folder = tmp_path_factory.mktemp("outside")
    places = {
        "configs/shapes/dpk.yaml": str(tiny.dpk),
        "configs/shapes/plain.yaml": str(tiny.plain),
        'teacher: {config: "configs/shapes/teacher.yaml"}': (
            f"teacher: {{config: {tiny.teacher}, weights: {tiny.weights}}}"
        ),
    }
    for name, text in re.findall(
        r"```(?:python|yaml)\n# (my_\w+\.\w+)\n(.*?)```", PAGE.read_text(), re.S
    ):
        for old, new in places.items():
            text = text.replace(old, new)
        (folder / name).write_text(text)
    (folder / "photos").symlink_to(tiny.plain.with_name("images"))
    return folder


def test_every_command_knows_a_method_that_a_config_imports(outside, tiny):
    """The commands of the page, from the shell."""
    (commands,) = re.findall(r"```sh\n(.*?my_attention.*?)```", PAGE.read_text(), re.S)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    said = {}
    for line in commands.splitlines():
        _, script, *argv = shlex.split(line)
        argv += ["--repeats", "1"] if script == "benchmarks/step.py" else []
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *argv],
            cwd=outside,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        said[Path(script).stem, "--check" in argv] = done.stdout + done.stderr
    assert "loss_attention" in said["train_net", True]
    assert "The job is ready to run." in said["train_net", True]
    lines = (outside / "output/my_attention/metrics.json").read_text().splitlines()
    assert "attention/loss_p3" in json.loads(lines[0]) and "attention/loss_p2" not in lines[0]
    assert "attention" in said["step", False]
    assert "detections in 8 images" in said["predict", False]
    exported = torch.load(outside / "student.pth")["model"]
    assert exported.keys() == tiny.build("plain").state_dict().keys()
    report = json.loads((outside / "output/my_attention_suite/results.json").read_text())
    assert "attention" in json.dumps(report)
    assert "IMPORTS" not in (outside / "student.yaml").read_text()


def test_a_module_of_ones_own_may_bring_an_architecture_and_its_keys(outside, tiny):
    """In a process of its own, where nothing else is registered."""
    config = outside / "mine.yaml"
    config.write_text(
        f"_BASE_: {tiny.dpk}\nIMPORTS: [my_project]\n"
        "MODEL: {META_ARCHITECTURE: DistillMyDetector, MY_DETECTOR: {DEPTH: 2}}\n"
    )
    source = """
from dpk_det.engine.train import parse_args, setup
cfg = setup(parse_args(["--config-file", "mine.yaml"]))
print(cfg.MODEL.MY_DETECTOR.DEPTH)
from detectron2.modeling import build_model
from dpk_det import plain_architecture
print(type(build_model(cfg)).__name__, plain_architecture(cfg).MODEL.META_ARCHITECTURE)
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=outside,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["2", "MyDetector", "MyDetector"], done.stderr[-2000:]


def test_evaluating_needs_no_method_of_ones_own(tiny):
    cfg = tiny.cfg("dpk", "DISTILL.METHODS", "['attention']")
    assert not hasattr(build_model(plain_architecture(cfg)), "distiller")
