"""What several tests share: a tiny dataset, tiny detectors, a teacher's weights and a training.

Everything is made once a session. Detectron2 is imported by the fixtures that need it, so that the
tests of dpk_det.distill can run without it.
"""

import contextlib
import json
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

# The student sees p2 to p4. Its teacher sees p2 to p6, has other pixel statistics, the other
# channel order and a larger padding divisor; neck width and heads are the student's.
BASE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  DEVICE: "cpu"
  PIXEL_MEAN: [120.0, 110.0, 100.0]
  PIXEL_STD: [60.0, 55.0, 50.0]
  BACKBONE:
    NAME: "build_small_resnet_fpn_backbone"
    FREEZE_AT: 0
  SMALL_RESNET:
    WIDTHS: [4, 8, 12]
    BLOCKS: [1, 1, 1]
  RESNETS:
    NORM: "GN"
    OUT_FEATURES: ["res2", "res3", "res4"]
  FPN:
    IN_FEATURES: ["res2", "res3", "res4"]
    OUT_CHANNELS: 16
  ANCHOR_GENERATOR:
    SIZES: [[16], [32], [64]]
    ASPECT_RATIOS: [[1.0]]
  RPN:
    IN_FEATURES: ["p2", "p3", "p4"]
    PRE_NMS_TOPK_TRAIN: 50
    PRE_NMS_TOPK_TEST: 50
    POST_NMS_TOPK_TRAIN: 20
    POST_NMS_TOPK_TEST: 20
    BATCH_SIZE_PER_IMAGE: 16
  ROI_HEADS:
    NAME: "StandardROIHeads"
    IN_FEATURES: ["p2", "p3", "p4"]
    NUM_CLASSES: 2
    BATCH_SIZE_PER_IMAGE: 8
    SCORE_THRESH_TEST: 0.0
  ROI_BOX_HEAD:
    NAME: "FastRCNNConvFCHead"
    NUM_FC: 1
    FC_DIM: 16
    POOLER_RESOLUTION: 3
INPUT:
  MIN_SIZE_TRAIN: (64,)
  MAX_SIZE_TRAIN: 96
  MIN_SIZE_TEST: 64
  MAX_SIZE_TEST: 96
DATASETS:
  JSON:
    tiny: [{images}.json, {images}]
  TRAIN: ("tiny",)
  TEST: ("tiny",)
DATALOADER:
  NUM_WORKERS: 0
SOLVER:
  IMS_PER_BATCH: 2
  BASE_LR: 0.01
  MAX_ITER: 3
  WARMUP_ITERS: 0
SEED: 1
VERSION: 2
OUTPUT_DIR: {output}
"""
TEACHER = """
_BASE_: "plain.yaml"
MODEL:
  PIXEL_MEAN: [90.0, 100.0, 110.0]
  PIXEL_STD: [40.0, 50.0, 60.0]
  SMALL_RESNET:
    WIDTHS: [8, 12, 16, 20]
    BLOCKS: [1, 2, 1, 1]
  RESNETS:
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
  FPN:
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
INPUT:
  FORMAT: "RGB"
OUTPUT_DIR: {output}
"""
DPK = """
_BASE_: "plain.yaml"
MODEL:
  META_ARCHITECTURE: "DistillRCNN"
DISTILL:
  TEACHER:
    CONFIG_FILE: {teacher}
    WEIGHTS: {weights}
  DPK:
    TOKEN_STRIDE: 16
    DIM: 16
    HEADS: 2
OUTPUT_DIR: {output}
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="tests/faults: all, not a slice")


@dataclass(frozen=True)
class Tiny:
    """Paths of the tiny experiment: configs, and the teacher's weights."""

    plain: Path
    dpk: Path
    teacher: Path
    weights: Path

    def cfg(self, name: str, *opts: Any) -> Any:
        """The config ``name``, its dataset registered."""
        from dpk_det.config.loading import load_config
        from dpk_det.data import register_image_datasets, register_json_datasets

        cfg = load_config(str(getattr(self, name)), [str(opt) for opt in opts])
        register_json_datasets(cfg)
        register_image_datasets(cfg)
        return cfg

    def build(self, name: str, *opts: Any, seed: int = 0) -> Any:
        """The model of the config ``name``, from a seed."""
        from detectron2.modeling import build_model

        torch.manual_seed(seed)
        return build_model(self.cfg(name, *opts))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """Eight images, three configs, and random weights for the teacher."""
    folder = tmp_path_factory.mktemp("tiny")
    draw_images(folder / "images")
    return write_experiment(folder, BASE, TEACHER, DPK)


def write_experiment(folder: Path, base: str, teacher: str, dpk: str) -> Tiny:
    """Three configs on ``folder/images``, and random weights for the teacher."""
    names = ("plain.yaml", "dpk.yaml", "teacher.yaml", "teacher.pth")
    tiny = Tiny(*(folder / name for name in names))
    tiny.plain.write_text(base.format(images=folder / "images", output=folder / "plain"))
    tiny.teacher.write_text(teacher.format(output=folder / "teacher"))
    tiny.dpk.write_text(
        dpk.format(teacher=tiny.teacher, weights=tiny.weights, output=folder / "dpk")
    )
    torch.save({"model": tiny.build("teacher", seed=7).state_dict()}, tiny.weights)
    return tiny


def draw_images(folder: Path) -> None:
    """Eight noisy images of discs and squares, 64 to 96 pixels, and ``folder.json``."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(8):
        height, width = 64, (64, 96)[i % 2]
        image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for category in (1, 2):
            x, y, side = (int(v) for v in rng.integers((2, 2, 20), (28, 28, 34)))
            colour = [int(c) for c in rng.integers(100, 256, 3)]
            if category == 1:
                cv2.rectangle(image, (x, y), (x + side, y + side), colour, -1)
            else:
                cv2.circle(image, (x + side // 2, y + side // 2), side // 2, colour, -1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": category,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        name = f"{i}.png"
        cv2.imwrite(str(folder / name), image)
        images.append({"id": i, "file_name": name, "height": height, "width": width})
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "disc"}]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    Path(f"{folder}.json").write_text(json.dumps(content))


@pytest.fixture
def batch(tiny) -> list[dict[str, Any]]:
    """A training batch of two images of different size, as the mapper makes it."""
    from detectron2.data import DatasetCatalog, DatasetMapper

    cfg = tiny.cfg("plain")
    mapper = DatasetMapper(cfg, is_train=True)
    state = random.getstate(), np.random.get_state()
    np.random.seed(0)  # the mapper flips by chance
    batch = [mapper(record) for record in DatasetCatalog.get("tiny")[:2]]
    random.setstate(state[0])
    np.random.set_state(state[1])
    return batch


@pytest.fixture
def little_space() -> Callable[[int], Any]:
    """``with little_space(1000):`` files hold as many bytes; more is as if the disk were full."""

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@contextlib.contextmanager
def command_context() -> Iterator[Callable[..., Any]]:
    """The training command in this process, without what it leaves behind in the loggers and, if it
    was stopped, in the signals' handlers."""
    from detectron2.engine import defaults
    from detectron2.utils.logger import setup_logger

    from dpk_det.engine.signals import SIGNALS
    from dpk_det.engine.train import run

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    collect, defaults.collect_env_info = defaults.collect_env_info, lambda: ""  # takes seconds
    setup_logger.cache_clear()
    try:
        yield lambda *argv: run([str(arg) for arg in argv])
    finally:
        defaults.collect_env_info = collect
        for name in ("detectron2", "fvcore", "dpk_det"):
            logging.getLogger(name).handlers.clear()
        setup_logger.cache_clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def in_command() -> Callable[..., Any]:
    """``with in_command() as command``: ``command``, for fixtures that live longer than a test."""
    return command_context


@pytest.fixture
def command() -> Iterator[Callable[..., Any]]:
    """``command("--config-file", path, ...)`` runs the training command in this process."""
    with command_context() as run:
        yield run


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> Path:
    """The folder of a distilling training of three steps."""
    folder = tmp_path_factory.mktemp("trained")
    with command_context() as run:
        run("--config-file", tiny.dpk, "OUTPUT_DIR", folder)
    return folder


CLASSIFIER = """
MODEL:
  META_ARCHITECTURE: "ImageClassifier"
  DEVICE: "cpu"
  PIXEL_MEAN: [120.0, 110.0, 100.0]
  PIXEL_STD: [60.0, 55.0, 50.0]
  BACKBONE: {{NAME: "build_cifar_backbone"}}
  CIFAR: {{NAME: "resnet20"}}
  CLASSIFIER: {{NUM_CLASSES: 3}}
INPUT:
  IMAGES: {{SIZE: 32, IN_MEMORY: True, BATCH_TEST: 7}}
DATASETS:
  IMAGES: {{discs_train: {images}.zip, discs_test: {images}}}
  TRAIN: ("discs_train",)
  TEST: ("discs_test",)
DATALOADER:
  NUM_WORKERS: 0
SOLVER:
  IMS_PER_BATCH: 8
  BASE_LR: 0.01
  MAX_ITER: 3
  WARMUP_ITERS: 0
SEED: 1
VERSION: 2
OUTPUT_DIR: {output}
"""
# other pixel statistics, the other channel order
CLASSIFYING_TEACHER = """
_BASE_: "plain.yaml"
MODEL:
  PIXEL_MEAN: [90.0, 100.0, 110.0]
  PIXEL_STD: [40.0, 50.0, 60.0]
  CIFAR: {{NAME: "wrn_16_2"}}
INPUT: {{FORMAT: "RGB"}}
OUTPUT_DIR: {output}
"""
CLASSIFYING_DPK = """
_BASE_: "plain.yaml"
MODEL: {{META_ARCHITECTURE: "DistillClassifier"}}
DISTILL:
  TEACHER: {{CONFIG_FILE: {teacher}, WEIGHTS: {weights}}}
  DPK: {{TOKEN_STRIDE: 8, DIM: 16, HEADS: 2, CKA_OF: "images"}}
OUTPUT_DIR: {output}
"""


def draw_classes(folder: Path) -> None:
    """Ten noisy images of 32 x 32 pixels a class, in a folder each, and ``folder.zip``."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
        for number, name in enumerate(("disc", "none", "square")):
            (folder / name).mkdir(parents=True)
            for i in range(10):
                image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                if number == 0:
                    cv2.circle(image, (16, 16), 9, (250, 200, 100), -1)
                elif number == 2:
                    cv2.rectangle(image, (8, 8), (24, 24), (50, 100, 250), -1)
                path = folder / name / f"{i}.png"
                cv2.imwrite(str(path), image)
                archive.write(path, f"images/{name}/{i}.png")


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory) -> Tiny:
    """As ``tiny``, of classifiers of three classes, with 30 images of discs and other shapes."""
    folder = tmp_path_factory.mktemp("tiny_images")
    draw_classes(folder / "images")
    return write_experiment(folder, CLASSIFIER, CLASSIFYING_TEACHER, CLASSIFYING_DPK)


@pytest.fixture(scope="session")
def distilled_images(tiny_images, tmp_path_factory) -> Path:
    """The folder of a classifier's training of three steps, with DPK and KD."""
    folder = tmp_path_factory.mktemp("distilled_images")
    with command_context() as run:
        methods = ["DISTILL.METHODS", "['dpk', 'kd']"]
        run("--config-file", tiny_images.dpk, *methods, "OUTPUT_DIR", folder)
    return folder


@pytest.fixture
def two_processes(tiny, tmp_path) -> Callable[..., list[dict[str, Any]]]:
    """``two_processes(source, KEY, VALUE, ...)`` runs a script under torchrun with the tiny DPK
    config, and gives what each rank has left in ``OUTPUT_DIR/rankN.json``."""

    def run(source: str, *opts: str) -> list[dict[str, Any]]:
        worker = tmp_path / "worker.py"
        worker.write_text(source)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        # no GPU, whatever the machine has
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(port), str(worker)]
        command += ["--config-file", str(tiny.dpk), "OUTPUT_DIR", str(tmp_path), *opts]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-4000:]
        return [json.loads(Path(tmp_path, f"rank{rank}.json").read_text()) for rank in (0, 1)]

    return run


@pytest.fixture
def is_running():
    """``is_running(pid)``: whether a process still works; one that only waits to be reaped not."""

    def is_running(pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return is_running
