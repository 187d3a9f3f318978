"""The files that ``init`` writes: short, with a comment on the reason for each choice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpk_det.architectures import distilling_names
from dpk_det.data.model_classes import class_count_key
from dpk_det.project.choices import Choices
from dpk_det.project.measures import Measures
from dpk_det.project.networks import Keys, TeacherChoice, base_from
from dpk_det.project.presets import EVIDENCE, Preset


@dataclass(frozen=True)
class Project:
    """Everything that the files contain.

    Attributes:
        folder: where the files are.
        data: measures of the photos.
        choices: sizes and schedule for the photos.
        splits: "train" and "val" -> paths of annotations and photos.
        teacher: the teacher's network.
        student: name of the student's network, and the keys that build it.
        preset: how the student learns.
        seeds: number of seeds of the comparison.
    """

    folder: Path
    data: Measures
    choices: Choices
    splits: dict[str, tuple[str, str]]
    teacher: TeacherChoice
    student: tuple[str, Keys]
    preset: Preset
    seeds: int

    @property
    def name(self) -> str:
        """Name of the folder. Names of datasets and output folders contain it."""
        return self.folder.resolve().name

    @property
    def teacher_config(self) -> str:
        """The value of ``DISTILL.TEACHER.CONFIG_FILE``."""
        return self.teacher.base if self.teacher.teaches else str(self.folder / "teacher.yaml")


def write_files(project: Project) -> dict[str, str]:
    """Return the content of each file by its name."""
    files = {"data.yaml": _data(project)}
    if not project.teacher.teaches:
        files["teacher.yaml"] = _teacher(project)
    files["plain.yaml"] = _plain(project)
    files["distilled.yaml"] = _distilled(project)
    files["suite.yaml"] = _suite(project)
    return files


def _data(project: Project) -> str:
    data, choices, cfg = project.data, project.choices, project.teacher.cfg
    why = choices.reasons
    rate = round(cfg.SOLVER.BASE_LR * choices.images / cfg.SOLVER.IMS_PER_BATCH, 6)
    train, val = (f"{project.name}_{split}" for split in ("train", "val"))
    json = "".join(
        f"    {_flow(f'{project.name}_{split}')}: {_flow(list(paths))}\n"
        for split, paths in project.splits.items()
    )
    anchors = ""
    if choices.small_anchors and project.teacher.keys:  # a teacher with a config has its own
        sizes = [[round(x / 2, 3) for x in level] for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES]
        anchors = f"  ANCHOR_GENERATOR:\n    SIZES: {_flow(sizes)} # {why['anchors']}\n"
    masks = ""
    if cfg.MODEL.MASK_ON and not data.masks:
        masks = "  MASK_ON: False # not all objects have a mask\n"
    codes = ""
    if cfg.MODEL.MASK_ON and data.masks and data.run_lengths:
        codes = '  MASK_FORMAT: "bitmask" # because masks are run-length codes\n'
    shown = ", ".join(data.classes[:6]) + ", ..." * (len(data.classes) > 6)
    crowded = ""
    if choices.detections > cfg.TEST.DETECTIONS_PER_IMAGE:
        crowded = f"  DETECTIONS_PER_IMAGE: {choices.detections} # there are photos of so many\n"
    return f"""\
# {data.num_images:,} photos with {data.num_objects:,} objects. Teacher and students read this file.
DATASETS:
  JSON: # name: [annotations, folder of photos]; paths start at the working directory
{json}  TRAIN: {_flow([train])}
  TEST: {_flow([val])}
MODEL:
  {class_count_key(cfg)}:
    NUM_CLASSES: {len(data.classes)} # {_comment(shown)}
{masks}{anchors}INPUT: # shorter and longer side of the resized photos in pixels
{codes}  MIN_SIZE_TRAIN: {_flow(choices.shorts)}
  MIN_SIZE_TEST: {choices.short} # {why["short"]}
  MAX_SIZE_TRAIN: {choices.long}
  MAX_SIZE_TEST: {choices.long}
SOLVER:
  IMS_PER_BATCH: {choices.images} # {why["images"]}
  BASE_LR: {rate} # {why["rate"]}
  MAX_ITER: {choices.steps} # {why["steps"]}
  LR_SCHEDULER_NAME: "WarmupCosineLR" # needs no steps to be chosen
  WARMUP_ITERS: {choices.warmup}
  CHECKPOINT_PERIOD: {max(choices.steps // 10, 1)}
TEST:
  EVAL_PERIOD: {max(choices.steps // 5, 1)} # for curves in the report
{crowded}VERSION: 2
"""


def _teacher(project: Project) -> str:
    teacher = project.teacher
    keys = teacher.keys or {"MODEL": {"WEIGHTS": teacher.weights}}
    why = (
        "# It starts with these weights, and learns your classes, which are others.\n"
        if teacher.weights
        else ""
    )
    return f"""\
# The teacher. It is trained first.
{why}{_bases(project)}{_block(keys)}\
OUTPUT_DIR: {_flow(f"output/{project.name}/runs/teacher")} # where the suite trains it
"""


def _plain(project: Project) -> str:
    name, keys = project.student
    plain = project.teacher.cfg.MODEL.META_ARCHITECTURE
    keys = {**keys, "MODEL": {"META_ARCHITECTURE": plain, **keys["MODEL"]}}
    return f"""\
# The student alone: the teacher's detector, with {name} in place of its network.
{_bases(project)}{_block(keys)}OUTPUT_DIR: {_flow(f"output/{project.name}/plain")}
"""


def _distilled(project: Project) -> str:
    plain = project.teacher.cfg.MODEL.META_ARCHITECTURE
    distilling = next(name for name, of in distilling_names().items() if of == plain)
    weights = ""
    if project.teacher.teaches and project.teacher.weights:
        weights = f"    WEIGHTS: {_flow(project.teacher.weights)}\n"
    inherit = "  INHERIT: True # start with the teacher's neck and heads\n"
    return f"""\
# The student under the teacher, by {project.preset.title}: {project.preset.reason}.
# What it gained elsewhere: {EVIDENCE}
_BASE_: "plain.yaml"
MODEL:
  META_ARCHITECTURE: "{distilling}"
DISTILL:
  TEACHER:
    CONFIG_FILE: {_flow(project.teacher_config)}
{weights}{inherit * project.preset.inherits}\
{_indent(project.preset.keys.format(fifth=project.choices.steps // 5))}\
OUTPUT_DIR: {_flow(f"output/{project.name}/distilled")}
"""


def _suite(project: Project) -> str:
    teacher = project.teacher
    plain, distilled = (_flow(str(project.folder / f"{x}.yaml")) for x in ("plain", "distilled"))
    given = f", weights: {_flow(teacher.weights)}" if teacher.teaches else ""
    inherit, baseline = "", ""
    if project.preset.inherits:
        baseline = ", baseline: inherit"
        inherit = (
            f"""  inherit: {{title: "inherits the teacher's heads", config: {plain}, """
            "teacher: teacher, opts: {DISTILL.INHERIT: True}}\n"
        )
    return f"""\
# Compare them with `dpk-det compare {_comment(f"{project.folder}/suite.yaml")}`; it goes on where
# it was stopped.
title: {_flow(project.name)}
seeds: {_flow(list(range(1, project.seeds + 1)))} # one alone says little
equal_time: True # also train each student without a teacher for as long as the dearest method takes
teachers:
  teacher: {{config: {_flow(project.teacher_config)}{given}}}
baseline: plain
methods:
  plain: {{title: "plain student", config: {plain}}}
{inherit}  distilled: {{title: "{project.preset.title}", config: {distilled}, \
teacher: teacher{baseline}}}
"""


def _bases(project: Project) -> str:
    return f"_BASE_: {_flow([base_from(project.teacher, project.folder), 'data.yaml'])}\n"


def _block(keys: Keys) -> str:
    return yaml.safe_dump(keys, default_flow_style=None, sort_keys=False, width=1000)


def _flow(value: Any) -> str:
    return (
        yaml.safe_dump(
            value, default_flow_style=True, width=10_000, default_style='"' * _quoted(value)
        )
        .removesuffix("...\n")
        .strip()
    )


def _comment(text: str) -> str:
    """Return a text of the user's files without line breaks, which would end a comment."""
    return "".join(x if x.isprintable() else " " for x in text)


def _quoted(value: Any) -> bool:
    """Whether it is a string or a list of strings, which are put in quotes."""
    return isinstance(value, str) or (isinstance(value, list) and _quoted(next(iter(value), 0)))


def _indent(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
