"""The valid things that the cases spoil: images, a dataset, configs, weights."""

import contextlib
import functools
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from cases import Proof
from detectron2.data import DatasetCatalog, MetadataCatalog

from dpk_det.engine.check import check
from dpk_det.engine.train import check_batch, parse_args, setup
from dpk_det.engine.trainer import DistillTrainer

TESTS = Path(__file__).parents[1]


class World:
    """A tiny experiment as the tests have it, made in a folder.

    Attributes:
        folder: where it is. coco: content of its dataset's JSON. config: content of its distilling
            config, without ``_BASE_``. tiny: the paths of all configs. weights: of the plain
            student.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        spec = importlib.util.spec_from_file_location("fixtures", TESTS / "conftest.py")
        fixtures = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fixtures)
        self.folder, self.images = folder, folder / "images"
        fixtures.draw_images(self.images)
        self.coco = _shorten(self.images.with_suffix(".json"), self.images)
        with no_new_datasets():
            self.tiny = fixtures.write_experiment(
                folder, fixtures.BASE, fixtures.TEACHER, fixtures.DPK
            )
            self.weights = folder / "student.pth"
            torch.save({"model": self.tiny.build("plain").state_dict()}, self.weights)
        self.config = _merge(*(yaml.safe_load(Path(x).read_text()) for x in self.tiny_chain()))

    def tiny_chain(self) -> tuple[Path, Path]:
        return self.tiny.plain, self.tiny.dpk

    def train(
        self, config_file: Path, *opts: Any, flag: str = "--check", output: str = "output"
    ) -> Proof:
        """``--check``; the proof is a training of one step and an evaluation.

        Args:
            output: below the working directory; "": as the config says.
        """
        opts = (*(("OUTPUT_DIR", output) if output else ()), *opts)
        argv = ["--config-file", config_file, flag, *opts]
        cfg = setup(parse_args([str(arg) for arg in argv]))
        check_batch(cfg, num_processes=1)
        check(cfg)
        return functools.partial(_train_one_step, cfg)


def _train_one_step(cfg: Any) -> None:
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.max_iter = trainer.start_iter + 1
    trainer.train()


@contextlib.contextmanager
def no_new_datasets():
    """What is registered within is forgotten; "tiny", which other tests have, is hidden."""
    before = dict(DatasetCatalog.data)
    metadata = dict(MetadataCatalog.data)
    DatasetCatalog.data.pop("tiny", None)
    MetadataCatalog.data.pop("tiny", None)
    try:
        yield
    finally:
        DatasetCatalog.data = before
        MetadataCatalog.data = metadata


def _shorten(json_file: Path, images: Path) -> dict[str, Any]:
    # three images do, and each object has a polygon
    content = json.loads(json_file.read_text())
    content["images"] = content["images"][:3]
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] < 3]
    for x in content["annotations"]:
        left, top, width, height = x["bbox"]
        right, bottom = left + width, top + height
        x["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
    json_file.write_text(json.dumps(content))
    for image in images.iterdir():
        if image.name not in {x["file_name"] for x in content["images"]}:
            image.unlink()
    return content


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if key == "_BASE_":
            continue
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) else value
    return merged
