#!/usr/bin/env python3
"""Install Detectron2 into the running interpreter, without a compiler.

Detectron2 is not on the Python index under its own name, and building it takes a compiler and
minutes. The index has ``pb1-detectron2`` 0.6: the Python files of upstream's v0.6 tag without the
C++ sources. This script checks the sha256 of that archive, repairs what newer torch, numpy and
Pillow broke (`MENDS`), builds a wheel named ``detectron2`` and installs it with pip, so that
``pip uninstall detectron2`` removes it again. A Detectron2 that can already be imported is left
alone, because a build from upstream's sources is always better.

    python tools/install_detectron2.py                      # archive from the package index
    python tools/install_detectron2.py --archive FILE       # no network needed for the archive
    python tools/install_detectron2.py --wheel-dir DIR      # only build the wheel, into DIR
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

ARCHIVE = "pb1-detectron2==0.6"
ARCHIVE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# Upstream keeps three small projects beside the package and installs them below it.
PROJECTS = {
    "projects/PointRend/point_rend": "detectron2/projects/point_rend",
    "projects/DeepLab/deeplab": "detectron2/projects/deeplab",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "detectron2/projects/panoptic_deeplab",
}

# The archive's setup.py cannot be used, because it needs the C++ sources. Its requirements are
# kept, except black, future and pydot: only the removed Caffe2 export and a pretty-printer used
# these.
# setuptools is imported by torch.utils.cpp_extension, which detectron2.utils.collect_env imports.
PYPROJECT = """\
[build-system]
requires = ["setuptools>=70.1"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "0.6"
description = "Detectron2 0.6 without its compiled part, mended for newer torch, numpy and Pillow"
requires-python = ">=3.10"
dependencies = [
    "Pillow>=7.1", "matplotlib", "pycocotools>=2.0.8", "termcolor>=1.1", "yacs>=0.1.8", "tabulate",
    "cloudpickle", "tqdm>4.29.0", "tensorboard", "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.9",
    "omegaconf>=2.1", "hydra-core>=1.1", "packaging", "setuptools",
]

[tool.setuptools.packages.find]
include = ["detectron2*"]

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]
"""

# pip asks an archive for its metadata even with --no-deps. This archive's setup.py cannot answer:
# it needs torch, and newer pip refuses its metadata, because an optional extra that nobody asked
# for names a URL. So setup.py finds this module when it imports torch. The module answers with name
# and version, which is all that a download needs. pip checks the sha256 before it asks.
STAND_IN = """\
from setuptools import setup

setup(name="pb1-detectron2", version="0.6", packages=[])
raise SystemExit(0)
"""


class InstallError(Exception):
    """An error that says in one sentence what went wrong, where, and what to do."""


class Mend(NamedTuple):
    """One change to the sources: `pattern` becomes `new` in every file that `files` matches."""

    files: str  # glob below the root of the archive
    pattern: str  # regular expression, with ^ and $ at line ends
    new: str  # replacement, as re.sub takes it
    reason: str


# End of the error message of an operation that needs the compiled part.
MISSING = (
    "belongs to Detectron2's compiled part, which is missing from this installation: build "
    "Detectron2 from its sources to use it."
)

MENDS = (
    Mend(
        "**/*.py",
        r"\bnp\.(bool|int|float|object|str)\b",
        r"\1",
        "numpy 1.24 removed its aliases of Python's own types",
    ),
    Mend(
        "detectron2/layers/mask_ops.py",
        r"np\.array\(mask, copy=False\)",
        "np.asarray(mask)",
        "numpy 2 raises where copy=False cannot be kept",
    ),
    Mend(
        "detectron2/data/transforms/transform.py",
        r"\bImage\.LINEAR\b",
        "Image.BILINEAR",
        "Pillow 10 removed the old name",
    ),
    Mend(
        "detectron2/model_zoo/model_zoo.py",
        r"^import pkg_resources$",
        "from importlib import resources",
        "setuptools 82 removed pkg_resources",
    ),
    Mend(
        "detectron2/model_zoo/model_zoo.py",
        r"pkg_resources\.resource_filename\(\s*"
        r'"detectron2\.model_zoo", os\.path\.join\("configs", config_path\)\s*\)',
        'str(resources.files("detectron2.model_zoo") / "configs" / config_path)',
        "setuptools 82 removed pkg_resources",
    ),
    Mend(
        "detectron2/layers/*.py",
        r"^from detectron2 import _C$",
        f"""\
try:
    from detectron2 import _C
except ImportError:

    class _MissingCompiledPart:
        def __getattr__(self, name):
            raise ImportError(f"detectron2._C.{{name}} {MISSING}")

    _C = _MissingCompiledPart()""",
        "the archive has no compiled part; only rotated boxes and deformable convolution need it",
    ),
    Mend(
        "detectron2/layers/nms.py",
        r"^    return torch\.ops\.detectron2\.nms_rotated\(",
        f"""\
    if not hasattr(torch.ops.detectron2, "nms_rotated"):
        raise ImportError("torch.ops.detectron2.nms_rotated {MISSING}")
\\g<0>""",
        "the archive has no compiled part, which registers this operator",
    ),
    Mend(
        "detectron2/evaluation/coco_evaluation.py",
        r"^from detectron2\.evaluation\.fast_eval_api import COCOeval_opt$",
        """\
try:
    from detectron2.evaluation.fast_eval_api import COCOeval_opt
except ImportError:  # it needs the compiled part; pycocotools gives the same numbers, slower
    COCOeval_opt = COCOeval""",
        "the archive has no compiled part",
    ),
    Mend(
        "detectron2/export/__init__.py",
        r"^from \.api import \*$",
        """\
try:
    from .api import *
except ImportError:  # no caffe2
    pass""",
        "Caffe2 is gone from torch; detectron2.utils.analysis (FLOPs, parameters) needs the rest",
    ),
    Mend(
        "**/*.py",
        r"torch\.meshgrid\(((?:[^()]|\([^()]*\))*?),?(\s*)\)",
        r'torch.meshgrid(\1, indexing="ij"\2)',
        "torch warns, and will raise, where indexing is not given",
    ),
    Mend(
        "detectron2/modeling/meta_arch/retinanet.py",
        r"get_norm\(norm, 1\)",
        "get_norm(norm, 32)",
        "torch refuses a GroupNorm of 32 groups on one channel: FCOS could not be built",
    ),
    Mend(
        "detectron2/engine/train_loop.py",
        r"from torch\.cuda\.amp import (\w+)",
        r"from torch.amp import \1",
        "torch.cuda.amp is deprecated",
    ),
    Mend(
        "detectron2/engine/train_loop.py",
        r"with autocast\(\):",
        'with autocast("cuda"):',
        "torch.amp.autocast has no default device",
    ),
)


def mend(root: Path, mends: tuple[Mend, ...] = MENDS) -> int:
    """Apply `mends` below `root`; return how many places were changed.

    Raises:
        InstallError: if a mend matches nothing: it was written for other sources.
    """
    total = 0
    for item in mends:
        count = 0
        for path in sorted(root.glob(item.files)):
            text, n = re.subn(item.pattern, item.new, path.read_text("utf-8"), flags=re.MULTILINE)
            if n:
                path.write_text(text, "utf-8")
            count += n
        if not count:
            raise InstallError(
                f"The mend {item.pattern!r} ({item.reason}) matched nothing in {item.files} of "
                f"{root.name}: correct or remove its entry in MENDS of {Path(__file__).name}."
            )
        total += count
    return total


def verify(archive: Path) -> None:
    """Check the sha256 of `archive`.

    Raises:
        InstallError: if the file cannot be read, or is not the archive that this script repairs.
    """
    try:
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(
            f"The archive {archive} cannot be read ({error.strerror}): give the path of the source "
            f"archive of {ARCHIVE} after --archive."
        ) from error
    if found != ARCHIVE_SHA256:
        raise InstallError(
            f"The archive {archive} has sha256 {found} instead of {ARCHIVE_SHA256}: get the source "
            f"archive of {ARCHIVE} again."
        )


def pip(*args: str | Path, **environment: str) -> None:
    """Run this interpreter's pip; its messages go to the terminal.

    Raises:
        InstallError: if pip fails.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, args)]
    if subprocess.run(command, env={**os.environ, **environment}).returncode:
        raise InstallError(
            f"pip {args[0]} failed in {sys.executable}: see its messages above, and give the "
            f"source archive of {ARCHIVE} with --archive where there is no network."
        )


def download(folder: Path) -> Path:
    """Fetch the archive with pip into `folder` and return its path."""
    stand_in = folder / "stand_in"
    stand_in.mkdir(parents=True)
    (stand_in / "torch.py").write_text(STAND_IN)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{ARCHIVE} --hash=sha256:{ARCHIVE_SHA256}\n")
    options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes")
    options += ("--quiet", "--dest", folder, "--requirement", requirements)
    pip("download", *options, PYTHONPATH=str(stand_in))
    return next(folder.glob("*.tar.gz"))


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack `archive` below `folder` and return the one directory in it."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # absent from the first releases of Python 3.10, 3.11
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)
    return next(path for path in folder.iterdir() if path.is_dir())


def build_wheel(archive: Path, wheel_dir: Path) -> Path:
    """Build the mended wheel from the verified `archive` into `wheel_dir`; return its path.

    Raises:
        InstallError: if setuptools is missing or too old, a mend matches nothing, or pip fails.
    """
    try:
        importlib.import_module("setuptools.command.bdist_wheel")
    except ImportError as error:
        raise InstallError(
            f"Building Detectron2 takes setuptools>=70.1, which {sys.executable} lacks: install it "
            f"with `{sys.executable} -m pip install 'setuptools>=70.1'` first."
        ) from error
    with tempfile.TemporaryDirectory() as tmp:
        source, stage = unpack(archive, Path(tmp, "source")), Path(tmp, "stage")
        print(f"Mended {mend(source)} places in {ARCHIVE}.")
        shutil.copytree(source / "detectron2", stage / "detectron2")
        for project, package in PROJECTS.items():
            shutil.copytree(source / project, stage / package)
        shutil.copy(source / "LICENSE", stage)
        (stage / "pyproject.toml").write_text(PYPROJECT)
        options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
        pip("wheel", *options, "--wheel-dir", wheel_dir, stage)
    return next(wheel_dir.glob("detectron2-0.6-*.whl"))


def is_installed() -> bool:
    """Return whether ``import detectron2`` works here; if it does, print where it is."""
    try:
        module = importlib.import_module("detectron2")
        print(f"Detectron2 {module.__version__} is there: {Path(module.__file__).parent}.")
    except (ImportError, AttributeError):  # AttributeError: a stray folder of that name
        return False
    return True


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status, 2 after an :class:`InstallError`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archive", type=Path, help=f"local source archive of {ARCHIVE}")
    parser.add_argument("--wheel-dir", type=Path, help="only build the wheel, into this folder")
    parser.add_argument("--no-deps", action="store_true", help="do not install what it needs")
    args = parser.parse_args(argv)

    if args.wheel_dir is None and is_installed():
        return 0
    try:
        with tempfile.TemporaryDirectory() as tmp:
            archive = args.archive or download(Path(tmp))
            verify(archive)
            wheel = build_wheel(archive, args.wheel_dir or Path(tmp, "wheel"))
            if args.wheel_dir is None:
                pip("install", "--quiet", *(["--no-deps"] if args.no_deps else []), wheel)
    except InstallError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{'Built' if args.wheel_dir else 'Installed'} {wheel.name}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
