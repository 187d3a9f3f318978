#!/usr/bin/env python3
"""Collect the wheels that a Linux x86_64 machine without a network needs to run dpk_det.

torch, torchvision and their requirements are left out: they are gigabytes, and such a machine has
them. The list comes from the metadata of the installed dpk_det, so it is always up to date.

    python tools/wheelhouse.py wheelhouse --python-version 3.12
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

LEFT_OUT = {"torch", "torchvision"}
# These require torch, so they are fetched alone, and their other requirements are listed too.
ON_TORCH = {"timm"}
TEST_TOOLS = ["pytest", "pytest-xdist"]
# The index has these only as source archives; they are pure Python, so a wheel built here serves
# everywhere. omegaconf and hydra-core need this version of the last.
SOURCE_ONLY = ["fvcore>=0.1.5,<0.1.6", "iopath>=0.1.9", "antlr4-python3-runtime==4.9.3"]
# Wheels for glibc 2.28 or older run on every machine on which torch's own wheels run.
PLATFORMS = [f"manylinux_{v}_x86_64" for v in ("2_28", "2_27", "2_24", "2_17")] + [
    "manylinux2014_x86_64"
]


def run(*command: str | Path) -> None:
    """Run this interpreter with `command`; exit with its status if it fails."""
    status = subprocess.run([sys.executable, *map(str, command)]).returncode
    if status:
        sys.exit(status)


def name_of(text: str) -> str:
    """Return the normalised package name at the start of a requirement or a wheel's file name."""
    return re.match(r"[A-Za-z0-9._]+(-[A-Za-z][A-Za-z0-9._]*)*", text)[0].lower().replace("_", "-")


def needs() -> tuple[list[str], list[str]]:
    """Return dpk_det's runtime requirements, with Detectron2 and the test tools, without torch.

    Returns:
        What to fetch with all its requirements, and what to fetch alone.
    """
    runtime = runtime_needs("dpk_det")
    alone = [r for r in runtime if name_of(r) in ON_TORCH]
    below = [r for one in alone for r in runtime_needs(name_of(one))]
    whole = [r for r in runtime + below if name_of(r) not in LEFT_OUT | ON_TORCH]
    return [*whole, "detectron2==0.6", *TEST_TOOLS], alone


def runtime_needs(package: str) -> list[str]:
    """Return what an installed package requires, without its extras."""
    return [r for r in requires(package) or [] if "extra ==" not in r]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the wheels go")
    parser.add_argument(
        "--python-version",
        default=f"{sys.version_info.major}.{sys.version_info.minor}",
        help="of the machine the wheels are for (default: %(default)s)",
    )
    parser.add_argument("--only", nargs="+", metavar="PACKAGE", help="keep these alone")
    args = parser.parse_args()

    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", args.folder, *SOURCE_ONLY)
    run(Path(__file__).with_name("install_detectron2.py"), "--wheel-dir", args.folder)
    target = ["--only-binary=:all:", "--implementation", "cp"]
    target += ["--python-version", args.python_version]
    target += [f"--platform={platform}" for platform in PLATFORMS]
    options = ["--quiet", *target, "--find-links", args.folder, "--dest", args.folder]
    whole, alone = needs()
    run("-m", "pip", "download", *options, *whole)
    run("-m", "pip", "download", "--no-deps", *options, *alone)

    if args.only:
        # All are fetched first, because pip must see all of them to choose versions that fit.
        wanted = {name_of(package) for package in args.only}
        found = {name_of(wheel.name): wheel for wheel in args.folder.glob("*.whl")}
        if unknown := sorted(wanted - found.keys()):
            sys.exit(
                f"{', '.join(unknown)}: not among the packages that dpk_det needs, so not in "
                f"{args.folder}: choose from {', '.join(sorted(found))}."
            )
        for name in found.keys() - wanted:
            found[name].unlink()
    wheels = sorted(args.folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    print(f"{len(wheels)} wheels, {size:.1f} MB, for Python {args.python_version}: {args.folder}")


if __name__ == "__main__":
    main()
