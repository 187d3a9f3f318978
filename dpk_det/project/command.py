"""``dpk-det init``: write the files of a comparison from photos, a teacher and a student."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from dpk_det.engine.ends import exit_on_user_error
from dpk_det.errors import UserError, find
from dpk_det.files import write_whole
from dpk_det.pairing.teacher import ZOO_EXAMPLE
from dpk_det.project.choices import choose
from dpk_det.project.files import Project, write_files
from dpk_det.project.measures import measure
from dpk_det.project.networks import backbone_keys, choose_teacher
from dpk_det.project.presets import DEFAULT, PRESETS
from dpk_det.project.sources import FORMS, Split, read_sources


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, or ``argv`` if it is given."""
    methods = "; ".join(f"{name}: {preset.reason}" for name, preset in PRESETS.items())
    parser = argparse.ArgumentParser(
        description="Write data.yaml, teacher.yaml, plain.yaml, distilled.yaml and suite.yaml.",
        epilog=f"Methods: {methods}.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="to write to")
    parser.add_argument("--train", nargs="+", required=True, metavar="PATH", help=f"{FORMS}")
    parser.add_argument("--val", nargs="+", default=[], metavar="PATH", help="the same")
    parser.add_argument(
        "--val-share", type=float, default=0.0, help="share of --train to evaluate on, such as 0.2"
    )
    parser.add_argument(
        "--teacher",
        default=ZOO_EXAMPLE,
        help="config of the model zoo's or of yours, or a network for a Faster R-CNN that is "
        f"trained on your photos, named as for --student (default: {ZOO_EXAMPLE})",
    )
    parser.add_argument("--teacher-weights", default="", help="path or URL (default: its own)")
    parser.add_argument(
        "--student",
        default="resnet18",
        help="network in place of the teacher's: resnet18, 34, 50, or one of timm's "
        "(default: resnet18)",
    )
    parser.add_argument("--student-weights", default="", help="file (default: ImageNet's, fetched)")
    parser.add_argument("--method", default=DEFAULT, help=f"default: {DEFAULT}")
    parser.add_argument("--gpus", type=int, help="for a training (default: one, if there is one)")
    parser.add_argument(
        "--seeds", type=int, help="trainings of each student (default: 4; 1 without a GPU)"
    )
    parser.add_argument("--print", action="store_true", help="show the files, and write nothing")
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    with exit_on_user_error():
        print(init(args))


def init(args: argparse.Namespace) -> str:
    """Make the files that the command line asks for.

    Returns:
        The text to print.

    Raises:
        UserError: if something that the command line names does not exist or does not suit, or a
            file of the folder would be overwritten.
    """
    preset = find(PRESETS, args.method, "method")
    for option in ("train", "val"):
        if len(getattr(args, option)) > 2:
            raise UserError(f"--{option} takes one or two paths: {FORMS}.")
    gpus = min(torch.cuda.device_count(), 1) if args.gpus is None else args.gpus
    seeds = (4 if gpus else 1) if args.seeds is None else args.seeds
    if seeds < 1 or (args.gpus is not None and args.gpus < 0):
        raise UserError("--seeds must be 1 or more, and --gpus 0 or more: correct them.")
    for weights in (args.teacher_weights, args.student_weights):
        if weights and "://" not in weights and not Path(weights).expanduser().is_file():
            raise UserError(f"There is no file of weights {weights}: correct the path.")
    train, val = read_sources(args.train, args.val, args.val_share)
    data = measure(train.content)
    teacher = choose_teacher(args.teacher, args.teacher_weights, data.classes)
    student = backbone_keys(args.student, args.student_weights, teacher.cfg)
    parts = {"train": train, "val": val}
    project = Project(
        folder=args.folder,
        data=data,
        choices=choose(data, gpus),
        splits={
            name: (part.file or str(args.folder / f"{name}.json"), part.images)
            for name, part in parts.items()
        },
        teacher=teacher,
        student=(args.student, student),
        preset=preset,
        seeds=seeds,
    )
    files = write_files(project)
    if args.print:
        return "\n".join(f"# ---- {args.folder / name}\n{text}" for name, text in files.items())
    return _write(project, files, parts)


def _write(project: Project, files: dict[str, str], parts: dict[str, Split]) -> str:
    contents = {
        f"{name}.json": json.dumps(part.content) + "\n"
        for name, part in parts.items()
        if part.file is None
    }
    contents |= files
    for name, part in parts.items():
        _check_photos(name, part)
    for name in contents:
        if (project.folder / name).exists():
            raise UserError(
                f"{project.folder / name} exists already: name another folder, or remove it."
            )
    for name, text in contents.items():
        write_whole(project.folder / name, text)
    folder, data = project.folder, project.data
    return (
        f"{data.num_images:,} photos to train on, {data.num_objects:,} objects, "
        f"{len(data.classes)} classes, {len(parts['val'].content['images']):,} photos to evaluate "
        f"on.{_empty(parts['train'])}\nWrote {', '.join(contents)} to {folder}. Look at them, then:"
        f"\n\n    dpk-det check {folder}/plain.yaml     # opens every photo, and tells the time\n"
        f"    dpk-det compare {folder}/suite.yaml   # trains teacher and students, and reports"
    )


def _check_photos(name: str, part: Split) -> None:
    folder = Path(part.images).expanduser()
    images = part.content["images"]
    absent = [x["file_name"] for x in images if not (folder / x["file_name"]).is_file()]
    if absent:
        raise UserError(
            f"{len(absent):,} of {len(images):,} photos of --{name} are not below {folder}, the "
            f"first is {absent[0]}: correct the folder, or take them out of the annotations."
        )


def _empty(part: Split) -> str:
    """Return a sentence on photos without an object, whose annotations may be missing."""
    seen = {x["image_id"] for x in part.content.get("annotations", [])}
    count = sum(x["id"] not in seen for x in part.content["images"])
    return f" {count:,} of the photos to train on have no object." if count else ""
