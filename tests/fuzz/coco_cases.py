"""COCO JSON: fields that are absent or odd, lists that do not fit together, texts that are none."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cases import (
    EITHER,
    ODD,
    REFUSED,
    WORKS,
    Case,
    Proof,
    changed,
    damages,
    doubled,
    mutations,
    without,
)
from world import World

KIND = "COCO JSON"
NAN, INF = float("nan"), float("inf")
MASKS = (
    "MODEL.MASK_ON",
    "True",
    "MODEL.ROI_MASK_HEAD.NAME",
    "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV",
    "1",
    "MODEL.ROI_MASK_HEAD.CONV_DIM",
    "8",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
    "6",
)

# path in the JSON, values that cannot be used, values that can
TABLE: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...] = (
    ("images", (None, [], {}, "x", [None], [5], [{}]), ()),
    ("annotations", (None, {}, "x", [None], [5], [{}]), ()),
    ("categories", (None, [], {}, "x", [None], [5], [{}]), ()),
    ("images.0.id", (None, [], {}, 1.5, 1, "x", True), (77,)),
    ("images.0.file_name", (None, "", 5, [], "gone.png", "../gone.png", "a\0b", "/"), ()),
    ("images.0.width", (None, 0, -64, "64", 65, 1.5, 2**70, []), ()),
    ("images.0.height", (None, 0, -64, "64", 65, NAN), ()),
    ("annotations.0.id", (None, 0, "x", 2, 1.5, []), (2**40,)),
    ("annotations.0.image_id", (None, [], "0", 1.5), (1,)),
    ("annotations.0.category_id", (None, 0, 3, "1", 1.5, True, []), (2,)),
    (
        "annotations.0.bbox",
        (None, [], [1], [1, 2, 3, 4, 5], "x", [1, 2, -3, 4], [1, 2, NAN, 4], [1, 2, INF, 4])
        + (["1", "2", "3", "4"], [None] * 4, [1, 2, 1e308, 4], {}),
        ([1.5, 2.5, 20.25, 20], [0, 0, 64, 64]),
    ),
    ("annotations.0.area", (None, "5", [], NAN, -5), (5, 5.5)),
    ("annotations.0.iscrowd", (None, [], "x", 2, -1, 1.5), (0, 1)),
    ("annotations.0.ignore", (1, True), (0,)),
    ("categories.0.id", (None, "x", 2, 1.5, []), ()),
    ("categories.0.name", (None, "", 5, [], "disc"), ("naïve ☃",)),
)
# the same with masks, of "annotations.0.segmentation"
SEGMENTATIONS: tuple[tuple[Any, ...], tuple[Any, ...]] = (
    (
        None,
        [],
        [[]],
        [[1, 2]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, 6, 7]],
        "x",
        5,
        [["a"] * 6],
        [[NAN] * 6],
        [[INF] * 6],
        [None],
        {},
        {"size": [64, 64]},
        {"counts": [64 * 64]},
        {"size": [64, 64], "counts": [0, 64 * 64]},  # where polygons are wanted
    ),
    ([[1, 1, 20, 1, 20, 20]], [[1, 1, 20, 1, 20, 20], [30, 30, 40, 30, 40, 40]]),
)
RUN_LENGTHS: tuple[tuple[Any, ...], tuple[Any, ...]] = (
    (
        {"size": [64, 64], "counts": [5]},
        {"size": [32, 64], "counts": [0, 32 * 64]},
        {"size": [64], "counts": [64 * 64]},
        {"size": [64, 64], "counts": [-5, 64 * 64 + 5]},
        {"size": [64, 64], "counts": "x"},
        {"size": [64, 64], "counts": "\n"},
        {"size": [64, 64], "counts": None},
        {"size": ["64", "64"], "counts": [64 * 64]},
    ),
    ({"size": [64, 64], "counts": [70, 20, 4006]},),
)


def coco_cases(world: World) -> list[Case]:
    """Cases of all sorts of COCO JSON."""
    return [*_of_table(world), *_of_masks(world), *_of_structure(world), *_of_texts(world)]


def _train(world: World, text: str | bytes, opts: tuple[str, ...], folder: Path) -> Proof:
    file = folder / "coco.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    entry = f"['{file}', '{world.images}']"
    return world.train(world.tiny.plain, "DATASETS.JSON.tiny", entry, *opts)


def _case(world: World, name: str, expect: str, content: Any, opts: tuple[str, ...] = ()) -> Case:
    text = content if isinstance(content, str | bytes) else json.dumps(content, default=repr)
    return Case(KIND, name, expect, functools.partial(_train, world, text, opts))


def _of_table(world: World) -> Iterator[Case]:
    for path, bad, good in TABLE:
        for expect, values in ((REFUSED, bad), (WORKS, good)):
            for value in values:
                content = changed(world.coco, (path, value))
                yield _case(world, f"{path}: {value!r}", expect, content)
        if "." in path and not path.endswith("ignore"):
            yield _case(world, f"{path}: absent", REFUSED, without(world.coco, path))
    for path in ("images", "annotations", "categories"):
        yield _case(world, f"{path}: absent", REFUSED, without(world.coco, path))


def _of_masks(world: World) -> Iterator[Case]:
    path = "annotations.0.segmentation"
    for (bad, good), opts in (
        (SEGMENTATIONS, MASKS),
        (RUN_LENGTHS, (*MASKS, "INPUT.MASK_FORMAT", "bitmask")),
    ):
        for expect, values in ((REFUSED, bad), (WORKS, good)):
            for value in values:
                name = f"{opts[-1]} segmentation: {value!r}"
                yield _case(world, name, expect, changed(world.coco, (path, value)), opts)
    content = without(world.coco, path)
    yield _case(world, "segmentation: absent", REFUSED, content, MASKS)
    yield _case(world, "segmentation: absent, no masks", WORKS, content)


def _of_structure(world: World) -> Iterator[Case]:
    coco = world.coco
    third = {"id": 3, "name": "x"}
    crowds = [x | {"iscrowd": 1} for x in coco["annotations"]]
    nowhere = [x | {"bbox": [500, 500, 10, 10]} for x in coco["annotations"]]
    astray = [x | {"image_id": 99} for x in coco["annotations"]]
    for name, expect, content in (
        ("the valid file", WORKS, coco),
        ("without info", WORKS, without(coco, "info")),
        ("more keys", WORKS, coco | {"licenses": [], "x": 5}),
        ("info is null", WORKS, coco | {"info": None}),
        ("info is a text", EITHER, coco | {"info": "x"}),
        ("an image twice", REFUSED, doubled(coco, "images.0")),
        ("an annotation twice", REFUSED, doubled(coco, "annotations.0")),
        ("a category twice", REFUSED, doubled(coco, "categories.0")),
        ("a third category", REFUSED, coco | {"categories": [*coco["categories"], third]}),
        ("no annotation", REFUSED, coco | {"annotations": []}),
        ("crowds alone", REFUSED, coco | {"annotations": crowds}),
        ("all of other images", REFUSED, coco | {"annotations": astray}),
        ("boxes beside the images", REFUSED, coco | {"annotations": nowhere}),
        ("one of another image", WORKS, changed(coco, ("annotations.0.image_id", 99))),
        ("a box beside its image", WORKS, changed(coco, ("annotations.0.bbox", [500, 500, 5, 5]))),
        ("a box without area", WORKS, changed(coco, ("annotations.0.bbox", [5, 5, 0, 0]))),
        ("two images of one file", WORKS, changed(coco, ("images.2.file_name", "0.png"))),
    ):
        yield _case(world, name, expect, content)
    for number, (name, content) in enumerate(mutations(coco, 60, seed=3)):
        masks = MASKS if number % 2 else ()
        yield _case(world, f"mutation {number}: {name}", EITHER, content, masks)
    spoil: list[Callable[[Any], Any]] = [lambda x: x, str, lambda x: [x], lambda x: {"x": x}]
    for number, value in enumerate(ODD):
        if isinstance(value, bytes):
            continue
        content = changed(coco, ("annotations.1.bbox.2", spoil[number % 4](value)))
        yield _case(world, f"a side {number}: {value!r}", EITHER, content)


def _of_texts(world: World) -> Iterator[Case]:
    text = json.dumps(world.coco)
    for name, expect, odd in (
        ("empty", REFUSED, ""),
        ("white", REFUSED, " \n"),
        ("a list", REFUSED, "[]"),
        ("null", REFUSED, "null"),
        ("a number", REFUSED, "5"),
        ("an empty object", REFUSED, "{}"),
        ("more behind it", REFUSED, text + "{}"),
        ("a comma too many", REFUSED, text[:-1] + ",}"),
        ("NUL", REFUSED, "\0" * 100),
        ("nested deeply", REFUSED, "[" * 100_000),
        ("indented", WORKS, json.dumps(world.coco, indent=1)),
    ):
        yield _case(world, f"text: {name}", expect, odd)
    for name, expect, odd in (
        ("a byte order mark", EITHER, b"\xef\xbb\xbf" + text.encode()),
        ("UTF-16", EITHER, text.encode("utf16")),
        ("an image", REFUSED, (world.images / "0.png").read_bytes()),
        ("bytes that are no UTF-8", REFUSED, text.replace("square", "caf\xe9").encode("latin1")),
    ):
        yield _case(world, f"bytes: {name}", expect, odd)
    for number, (name, odd) in enumerate(damages(text.encode(), 24, seed=4)):
        yield _case(world, f"damage {number}: {name}", EITHER, odd)
