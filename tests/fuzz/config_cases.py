"""Configs: values out of range, odd values for every key, files that are no YAML, weights."""

import functools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from cases import EITHER, ODD, REFUSED, WORKS, Case, Proof, changed, damages
from detectron2.config import CfgNode
from world import World

from dpk_det.config.loading import load_config

KIND = "configs"
NAN, INF = float("nan"), float("inf")

# key, values that no training can use, values that it can
TABLE: tuple[tuple[str, Sequence[Any], Sequence[Any]], ...] = (
    ("DISTILL.METHODS", ["dpk", [], ["dpk", "dpk"], ["dpkk"], [1], [None]], [["dpk", "pkd"]]),
    ("DISTILL.LEVELS", [["p9"], ["p2", "p2"], [2], "p2"], [["p2"], ["p4", "p2"]]),
    ("DISTILL.WARMUP_ITERS", [-1, 1.5, "x"], [0, 1, 10**6]),
    ("DISTILL.INHERIT", ["x", 2, None], [True]),
    ("DISTILL.TEACHER.CONFIG_FILE", ["", "gone.yaml", "/", "a\0b"], []),
    ("DISTILL.TEACHER.WEIGHTS", ["gone.pth", "/", "https://localhost:1/x.pth"], []),
    ("DISTILL.TEACHER.PRECISION", ["x", "fp8", "float32"], ["", "bf16"]),
    (
        "DISTILL.TEACHER.OPTS",
        [["A"], ["NOPE.KEY", 1], ["MODEL.FPN.OUT_CHANNELS", "x"], [1, 2], [None, None]],
        [["MODEL.ROI_HEADS.NUM_CLASSES", 2]],
    ),
    ("DISTILL.DPK.WEIGHT", [-1, NAN, INF, "x", None, [], True], [5, 0.5]),
    (
        "DISTILL.DPK.LEVEL_WEIGHTS",
        [[0, 0, 0], [-1, 1, 1], ["x", 1, 1], [NAN, 1, 1], [1.0], [1.0] * 9, [None, 1, 1]],
        [[1, 0, 2], [1.0, 1.0, 0.5]],
    ),
    ("DISTILL.DPK.TOKEN_STRIDE", [0, -16, 2**70, 1.5], [16, 32, 1]),
    ("DISTILL.DPK.DIM", [0, -4, 3, 18, 2**40], [8, 16]),
    ("DISTILL.DPK.HEADS", [0, -1, 3, 5], [1, 4]),
    ("DISTILL.DPK.ENCODER_DEPTH", [-1, 10**9, 1.5], [2]),
    ("DISTILL.DPK.DECODER_DEPTH", [-1, 10**9], [2]),
    ("DISTILL.DPK.RATIO", ["x", ""], ["fixed", "linear", "cosine", "exponential"]),
    ("DISTILL.DPK.RATIO_FIXED", [-0.1, 1.5, NAN], [1, 0]),
    ("DISTILL.DPK.MASK", ["x"], ["block", "grid"]),
    ("DISTILL.DPK.TARGET", ["x"], ["raw", "relative"]),
    ("DISTILL.DPK.LOSS", ["x"], ["cwd"]),
    ("DISTILL.DPK.POSITIONS", ["x"], ["student"]),
    ("DISTILL.DPK.CKA_OF", ["x"], []),
    ("DISTILL.DPK.FORM", ["x", 1], ["paper"]),
    ("DISTILL.DPK.LEVELS", [["p9"], "p3", ["p3", "p3"]], [["p3"]]),
    ("DISTILL.DPK.SHORTCUT", ["x", 2], [False]),
    ("IMPORTS", ["x", 3, ["no_such_module"], [3]], [["json"]]),
    ("DISTILL.DPK.CKA_WINDOW", [0, -1], [1]),
    ("DISTILL.DPK.CKA_EVERY", [0, -1], [1]),
    ("SOLVER.IMS_PER_BATCH", [0, -1, 1.5, 2**70], [1, 2]),
    ("SOLVER.BASE_LR", [-1, NAN, INF, "x"], [1, 0.001]),
    ("SOLVER.MAX_ITER", [-1, 1.5], [1, 10**6]),
    ("SOLVER.STEPS", [[2, 1], [-1], ["x"], [NAN], "x"], [[1, 2], "(1, 2)", []]),
    ("SOLVER.CHECKPOINT_PERIOD", [0, -1], [1]),
    ("SOLVER.GAMMA", [-1, NAN], [1, 0.1]),
    ("SOLVER.WARMUP_ITERS", [-1], [2]),
    ("SOLVER.WARMUP_FACTOR", [-1, NAN], [0.1]),
    ("SOLVER.WARMUP_METHOD", ["x"], ["constant"]),
    ("SOLVER.LR_SCHEDULER_NAME", ["x"], ["WarmupCosineLR"]),
    ("SOLVER.WEIGHT_DECAY", [-1, NAN], [0]),
    ("SOLVER.MOMENTUM", [-1, NAN], [0]),
    ("SOLVER.CLIP_GRADIENTS", [{"ENABLED": True, "CLIP_TYPE": "x"}], [{"ENABLED": True}]),
    ("TEST.EVAL_PERIOD", [-1], [1]),
    ("TEST.DETECTIONS_PER_IMAGE", [0, -5], [1]),
    ("DATALOADER.NUM_WORKERS", [-1], [0, 1]),
    ("DATALOADER.SAMPLER_TRAIN", ["x"], ["RepeatFactorTrainingSampler"]),
    ("DATASETS.TRAIN", [[], ["gone"], ["tiny", "gone"], [1]], [["tiny"]]),
    ("DATASETS.TEST", [["gone"], [None]], [[]]),
    (
        "DATASETS.JSON.tiny",
        [None, "x", [], ["a"], ["a", "b", "c"], [1, 2], ["gone.json", "/"], [None, None]],
        [],
    ),
    ("INPUT.MIN_SIZE_TRAIN", [[], [-5], ["x"], [NAN]], [[0], [32], [32, 48]]),
    ("INPUT.MAX_SIZE_TRAIN", [0, -1], [64]),
    ("INPUT.MIN_SIZE_TEST", [-1], [0, 32]),
    ("INPUT.MAX_SIZE_TEST", [0, -1], [64]),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", ["x"], []),
    ("INPUT.FORMAT", ["x", ""], ["RGB"]),
    ("INPUT.RANDOM_FLIP", ["x"], ["none", "vertical"]),
    ("INPUT.CROP", [{"ENABLED": True, "TYPE": "x"}], [{"ENABLED": True, "SIZE": [0.9, 0.9]}]),
    ("MODEL.DEVICE", ["x", "", "cpu:x"], ["cpu"]),
    ("MODEL.META_ARCHITECTURE", ["x", "", "DistilRCNN"], []),
    ("MODEL.BACKBONE.NAME", ["x", "", "build_resnet"], []),
    ("MODEL.PIXEL_MEAN", [[1.0], [NAN] * 3, ["x"] * 3, []], [[1, 2, 3]]),
    ("MODEL.PIXEL_STD", [[1.0], [0.0] * 3, [NAN] * 3, []], [[1, 2, 3]]),
    ("MODEL.ROI_HEADS.NUM_CLASSES", [0, -1, 3, 2**70], [2]),
    ("MODEL.ROI_HEADS.NAME", ["x", ""], []),
    ("MODEL.ROI_HEADS.IN_FEATURES", [[], ["p9"], ["x"]], [["p2", "p3"]]),
    ("MODEL.ROI_BOX_HEAD.NAME", ["x"], []),
    ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", [0, -1], [2]),
    ("MODEL.RPN.IN_FEATURES", [[], ["p9"]], []),
    ("MODEL.RPN.PRE_NMS_TOPK_TRAIN", [-1, 0], [10]),
    ("MODEL.ANCHOR_GENERATOR.SIZES", [[], [[]], [[16], [32]], "x", [["x"]]], [[[8], [16], [32]]]),
    ("MODEL.FPN.IN_FEATURES", [["res9"], []], []),
    ("MODEL.FPN.OUT_CHANNELS", [0, -1], []),
    ("MODEL.FPN.NORM", ["x"], ["BN"]),
    ("MODEL.FPN.TOP_BLOCK", ["x"], ["none"]),
    ("MODEL.SMALL_RESNET.WIDTHS", [[], [0, 0, 0], [-4, 8, 12], ["x", 1, 1]], [[4, 6, 8]]),
    ("MODEL.SMALL_RESNET.BLOCKS", [[], [-1, 1, 1], [1, 1, 1, 1, 1, 1]], [[2, 1, 1]]),
    ("MODEL.RESNETS.NORM", ["x"], ["BN", "FrozenBN"]),
    ("MODEL.WEIGHTS", ["gone.pth", "/", "https://localhost:1/x.pth", "torchvision://x"], [""]),
    ("MODEL.BACKBONE_WEIGHTS", ["gone.pth", "/"], [""]),
    ("SEED", ["x", 1.5, 2**70], [0, -1, 12345]),
    ("VERSION", [1, 3, "x", None], [2]),
    ("OUTPUT_DIR", ["a\0b", 5], ["deep/er"]),
    ("DISTIL", [1, {}], []),
    ("DISTILL.DPKK", [{"WEIGHT": 1.0}, 1], []),
    ("DISTILL.DPK.WIEGHT", [1.0], []),
)
# the same for arguments of methods that have to be asked for
METHODS: tuple[tuple[str, str, Sequence[Any], Sequence[Any]], ...] = (
    ("fitnets", "WEIGHT", [-1, NAN], [2]),
    ("fitnets", "TARGET", ["x"], ["standard"]),
    ("cwd", "WEIGHT", [-1, NAN, INF], [33]),
    ("cwd", "TEMPERATURE", [0, -1, 1e9, NAN], [2]),
    ("pkd", "WEIGHT", [-1, NAN], [48]),
    ("mgd", "WEIGHT", [-1, NAN], [1]),
    ("mgd", "MASK_RATIO", [-0.5, 2, NAN], [0.5]),
    ("fgd", "ALPHA", [-1, NAN], [0]),
    ("fgd", "TEMPERATURE", [0, -1, 1e9, NAN], [1]),
    ("reviewkd", "WEIGHT", [-1, NAN], [1]),
    ("reviewkd", "MID", [0, -1, 2**40], [8]),
    ("kd", "WEIGHT", [-1, NAN], [2]),
    ("kd", "RPN_WEIGHT", [-1, NAN], [1]),
    ("kd", "TEMPERATURE", [0, -1, 1e9, NAN], [4]),
    ("dkd", "ALPHA", [-1, NAN], [2]),
    ("dkd", "BETA", [-1, NAN], [8]),
    ("dkd", "TEMPERATURE", [0, -1, 1e9, NAN], [4]),
)
# what asks for processes or gigabytes, so that only the machine would be tried
TOO_DEAR = ("DATALOADER.NUM_WORKERS", "DISTILL.TEACHER.COMPILE")
ODD_BY_TYPE = {
    bool: (True, False),
    int: (-1, 0, 1, 7, 2**31, 2**70),
    float: (-1.0, 0.0, NAN, INF, 1e308, 1e-320),
    str: ("", "x", "naïve ☃", "a\0b", "/"),
    list: ([], [None], [-1], [0], ["x"], [NAN], [[]], [1, 1, 1]),
    tuple: ([], [None], [-1], [0], ["x"], [NAN], [[]], [1, 1, 1]),
}


def config_cases(world: World) -> list[Case]:
    """Cases of all sorts of configs."""
    return [*_of_table(world), *_of_methods(world), *_of_keys(world), *_of_texts(world)] + [
        *_of_overrides(world),
        *_of_weights(world),
    ]


def _train(world: World, text: str | bytes, folder: Path) -> Proof:
    file = folder / "config.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf8", "surrogatepass"))
    return world.train(file, output="")


def _case(world: World, name: str, expect: str, content: Any) -> Case:
    text = content if isinstance(content, str | bytes) else yaml.safe_dump(content)
    return Case(KIND, name, expect, functools.partial(_train, world, text))


def _base(world: World) -> dict[str, Any]:
    return {**world.config, "OUTPUT_DIR": "output"}  # below the case's folder


def _of_table(world: World) -> Iterator[Case]:
    for key, bad, good in TABLE:
        for expect, values in ((REFUSED, bad), (WORKS, good)):
            for value in values:
                content = changed(_base(world), (key, value))
                yield _case(world, f"{key}: {value!r}", expect, content)


def _of_methods(world: World) -> Iterator[Case]:
    for method, key, bad, good in METHODS:
        for expect, values in ((REFUSED, bad), (WORKS, good)):
            for value in values:
                steps = (("DISTILL.METHODS", [method]), (f"DISTILL.{method.upper()}.{key}", value))
                content = changed(_base(world), *steps)
                yield _case(world, f"{method} {key}: {value!r}", expect, content)


def _of_keys(world: World) -> Iterator[Case]:
    rng = random.Random(0)
    cfg = load_config(str(world.tiny.dpk))
    below = "RPN ROI_HEADS ROI_BOX_HEAD ANCHOR_GENERATOR FPN RESNETS SMALL_RESNET BACKBONE".split()
    sections = "DISTILL.TEACHER DISTILL.DPK SOLVER TEST INPUT DATALOADER DATASETS".split()
    sections += [f"MODEL.{name}" for name in below]
    for section in sections:
        node: Any = cfg
        for part in section.split("."):
            node = node[part]
        for key, value in _leaves(node, f"{section}."):
            if key in TOO_DEAR:
                continue
            same_type = rng.choice(ODD_BY_TYPE.get(type(value), ODD))
            for number, odd in enumerate((same_type, rng.choice(ODD))):
                content = changed(_base(world), (key, odd))
                yield _case(world, f"any {number} {key}: {odd!r}", EITHER, content)


def _leaves(node: CfgNode, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _of_texts(world: World) -> Iterator[Case]:
    text = yaml.safe_dump(_base(world))
    yield _case(world, "the valid config", WORKS, text)
    yield _case(world, "as JSON", WORKS, json.dumps(_base(world)))
    yield _case(world, "with a byte order mark", WORKS, "\ufeff" + text)
    yield _case(world, "with Windows' ends of lines", WORKS, text.replace("\n", "\r\n"))
    for name, odd in {
        "empty": "",
        "white": " \n\n",
        "a list": "- a\n- b\n",
        "a number": "5\n",
        "a text": "hello\n",
        "null": "null\n",
        "tabs": "MODEL:\n\tDEVICE: cpu\n",
        "an open bracket": text + "A: [1, 2\n",
        "a key twice": text + "SEED: 1\nSEED: 2\n",
        "two documents": text + "---\n" + text,
        "a number for a key": text + "5: 6\n",
        "null for a key": text + "null: 6\n",
        "a list for a key": text + "[1, 2]: 6\n",
        "a tag that runs code": text + 'X: !!python/object/apply:os.system ["true"]\n',
        "a tag of an object": text + "X: !!python/name:os.system\n",
        "a tag that nobody knows": text + "X: !nobody 5\n",
        "an alias of itself": text + "X: &a [*a]\n",
        "an alias of nothing": text + "X: *nothing\n",
        "a base that is absent": "_BASE_: gone.yaml\n",
        "a base of itself": "_BASE_: config.yaml\n",
        "a base that is a number": "_BASE_: 5\n",
        "a base that is a list": "_BASE_: [a, b]\n",
        "a base that is a folder": "_BASE_: /\n",
        "a base that is empty": "_BASE_: ''\n",
        "NUL": "\0" * 50,
        "a section that is null": text.replace("DISTILL:", "DISTILL:\nOTHER:"),
        "a section that is a number": "SOLVER: 5\n" + text.replace("SOLVER:", "SOLVERX:"),
        "a section that is a list": "MODEL: [1]\n" + text.replace("MODEL:", "MODELX:"),
        "a key below a value": text + "SEED: {A: 1}\n",
    }.items():
        yield _case(world, f"text: {name}", REFUSED, odd)
    for name, odd in {
        "Latin-1": "X: caf\xe9\n".encode("latin1"),
        "UTF-16": text.encode("utf16"),
        "an image": (world.images / "0.png").read_bytes(),
    }.items():
        yield _case(world, f"bytes: {name}", EITHER if name == "UTF-16" else REFUSED, odd)
    for number, (name, odd) in enumerate(damages(text.encode(), 24, seed=1)):
        yield _case(world, f"damage {number}: {name}", EITHER, odd)


def _of_overrides(world: World) -> Iterator[Case]:
    def case(expect: str, *opts: str) -> Case:
        def accept(folder: Path) -> Proof:
            return world.train(world.tiny.dpk, *opts)

        return Case(KIND, f"overrides: {' '.join(opts)!r}", expect, accept)

    for opts in (
        ("SOLVER.BASE_LR",),
        ("NOPE", "1"),
        ("", ""),
        (".", "1"),
        ("..", "1"),
        ("SOLVER", "5"),
        ("SOLVER.", "5"),
        ("SOLVER.BASE_LR.X", "5"),
        ("SOLVER.BASE_LR", "x"),
        ("SOLVER.BASE_LR", "[1"),
        ("SOLVER.BASE_LR", "__import__('os')"),
        ("SOLVER.MAX_ITER", "1e3"),
        ("SOLVER.STEPS", "1"),
        ("DISTILL.METHODS", "dpk"),
        ("DISTILL.DPK.WEIGHT", "-3"),
        ("--nope", "1"),
        ("SEED", "9" * 5000),
        ("SEED", "(" * 300),
        ("DATASETS.TRAIN", "('tiny',"),
        ("solver.base_lr", "0.1"),
        ("MODEL.DEVICE", ""),
    ):
        yield case(REFUSED, *opts)
    for opts in (
        ("DISTILL.DPK.WEIGHT", "50"),
        ("SOLVER.STEPS", "(1, 2)"),
        ("SOLVER.STEPS", "[1]"),
        ("DISTILL.METHODS", "['pkd']"),
        ("DISTILL.METHODS", "('pkd', 'cwd')"),
        ("DATASETS.TEST", "()"),
        ("SEED", "-1"),
    ):
        yield case(WORKS, *opts)


def _of_weights(world: World) -> Iterator[Case]:
    teacher = world.tiny.weights.read_bytes()
    state = torch.load(world.tiny.weights)["model"]
    first = next(iter(state))
    broken = {
        "NaN in a weight": state | {first: state[first] * NAN},
        "a weight missing": {k: v for k, v in state.items() if k != first},
        "a weight too many": state | {"other.weight": state[first]},
        "another shape": state | {first: state[first][:1]},
        "texts": dict.fromkeys(state, "x"),
        "whole numbers": {k: (v * 100).long() for k, v in state.items()},
        "nothing": {},
    }

    def put(folder: Path, content: Any) -> Path:
        file = folder / "weights.pth"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        return file

    def case(name: str, expect: str, key: str, content: Any) -> Case:
        def accept(folder: Path) -> Proof:
            file = put(folder, content)
            return world.train(world.tiny.dpk, key, file)

        return Case(KIND, f"{key}: {name}", expect, accept)

    where = "DISTILL.TEACHER.WEIGHTS"
    for name, weights in broken.items():
        yield case(name, EITHER if name == "whole numbers" else REFUSED, where, {"model": weights})
    for name, content in {
        "an empty file": b"",
        "a text": b"hello",
        "an image": (world.images / "0.png").read_bytes(),
        "zeros": bytes(5000),
        "a list": [1, 2],
        "a number": 5,
        "a model that is a list": {"model": [1]},
        "a model that is None": {"model": None},
    }.items():
        for key in (where, "MODEL.WEIGHTS", "MODEL.BACKBONE_WEIGHTS"):
            yield case(name, REFUSED, key, content)
    yield case("weights without a model's entry", WORKS, where, state)
    for number, (name, damaged) in enumerate(damages(teacher, 12, seed=2)):
        yield case(f"damage {number}: {name}", EITHER, where, damaged)
