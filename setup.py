"""Package metadata; the settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# Read, not imported: importing dpk_det imports torch, which is not there yet when pip asks.
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "dpk_det/__init__.py").read_text(), re.M)[1]
ONNX = ["onnx>=1.16", "onnxruntime>=1.20"]
TUNE = ["optuna>=4"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.29"]
FAST_EVAL = ["faster-coco-eval>=1.7"]
SLURM = ["submitit>=1.5"]
TRACKERS = {"wandb": ["wandb>=0.19"], "trackio": ["trackio>=0.20"]}

setup(
    name="dpk_det",
    version=VERSION,
    description="Distil big object detectors into small ones with Dynamic Prior Knowledge",
    author="The dpk_det authors",
    license="Apache-2.0",
    packages=[*find_packages(include=("dpk_det*",)), "dpk_det.configs"],
    package_dir={"dpk_det.configs": "configs"},
    package_data={
        "dpk_det.configs": ["**/*.yaml"],
        "dpk_det.comparison": ["templates/*.html"],
    },
    entry_points={"console_scripts": ["dpk-det = dpk_det.cli:main"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        "torch>=2.11,<2.16",
        "torchvision>=0.26,<0.31",
        "numpy>=2",
        "Pillow>=12",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.9",
        "pycocotools>=2.0.8",
        "opencv-python>=4.10",
        "matplotlib>=3.9",
        "tqdm",
        "tabulate",
        "scipy>=1.13",
        "timm>=1.0.15,<2",
        "safetensors>=0.4",
        "yacs>=0.1.8",
        "PyYAML",
        "msgspec>=0.19",
        "Jinja2>=3",
        "portalocker",
        "termcolor",
        # Upstream's model zoo imports pkg_resources, which setuptools 82 removed, and
        # tools/install_detectron2.py builds a wheel with it.
        "setuptools>=77,<82",
        # Detectron2 is needed as well, but the index does not have it, so pip could not install
        # dpk_det if it stood here: build it from upstream's sources, or let
        # tools/install_detectron2.py (which `make` runs) put its Python part in place.
    ],
    extras_require={
        # to write .onnx files, and to run them
        "onnx": ONNX,
        # for tools/tune.py
        "tune": TUNE,
        # for `make docs`
        "docs": DOCS,
        # COCO's AP in an eighth of the time, where Detectron2's C++ part is absent
        "fast-eval": FAST_EVAL,
        # for compare.py --cluster
        "slurm": SLURM,
        # for TRACKER.NAME
        **TRACKERS,
        "mlflow": ["mlflow>=3"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3",
            "ruff>=0.8",
            *ONNX,
            *TUNE,
            *DOCS,
            *FAST_EVAL,
            *SLURM,
            *TRACKERS["wandb"],
            *TRACKERS["trackio"],
            "mlflow-skinny>=3",  # all but the parts that serve
        ],
    },
)
