"""Finished trainings that nobody trained, and trainings in two processes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

MACHINE = {
    "platform": "Linux",
    "cores": 2,
    "threads": 1,
    "gpu": None,
    "python": "3.11",
    "torch": "2.14",
    "detectron2": "0.6",
}


@pytest.fixture
def finish() -> Callable[..., None]:
    """``finish(run, ap, ...)`` leaves what a training leaves at its end."""

    def finish(run: Any, ap: float | None, **other: Any) -> None:
        run.folder.mkdir(parents=True)
        results = {
            "iterations": 3,
            "parameters": 1234567,
            "distiller_parameters": 0,
            "seconds_per_step": 0.1,
            "peak_memory_mb": 200.0,
            "machine": MACHINE,
            "results": {"bbox": {"AP": ap, "AP50": None if ap is None else ap + 20}},
        }
        (run.folder / "results.json").write_text(json.dumps(results | other))

    return finish


MASK = {
    "MODEL.MASK_ON": True,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 6,
}
ARCHITECTURES = {
    "faster": {},
    "mask": MASK,
    "keypoint": {
        "MODEL.KEYPOINT_ON": True,
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 3,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [8],
        "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 6,
    },
    "cascade": {
        "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    },
    # few candidates a level, for a trace must keep that limit where the example is below it
    "retinanet": {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.RETINANET.NUM_CLASSES": 2,
        "MODEL.RETINANET.IN_FEATURES": ["p2", "p3", "p4"],
        "MODEL.RETINANET.NUM_CONVS": 1,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 50,
    },
    "fcos": {
        "MODEL.META_ARCHITECTURE": "FCOS",
        "MODEL.FCOS.NUM_CLASSES": 2,
        "MODEL.FCOS.IN_FEATURES": ["p2", "p3", "p4"],
        "MODEL.FCOS.NUM_CONVS": 1,
        "MODEL.FCOS.SCORE_THRESH_TEST": 0.0,
        "MODEL.FCOS.TOPK_CANDIDATES_TEST": 50,
    },
    "panoptic": MASK
    | {
        "MODEL.META_ARCHITECTURE": "PanopticFPN",
        "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3", "p4"],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
        "MODEL.SEM_SEG_HEAD.NORM": "GN",
    },
}


@pytest.fixture(scope="session")
def variant(tiny, tmp_path_factory) -> Callable[..., tuple[Any, list[str], str]]:
    """``variant("mask")``: a tiny model of that kind, its overrides, and a file of its weights."""

    folder = tmp_path_factory.mktemp("variants")

    def make(kind: str) -> tuple[Any, list[str], str]:
        opts = [str(x) for pair in ARCHITECTURES[kind].items() for x in pair]
        model, path = tiny.build("plain", *opts).eval(), folder / f"{kind}.pth"
        if kind in ("retinanet", "fcos"):  # begins with nearly the same score everywhere
            model.head.cls_score.weight.data.mul_(50)
        torch.save({"model": model.state_dict()}, path)
        return model, opts, str(path)

    return make


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
