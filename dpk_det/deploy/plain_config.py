"""Writes the plain model's config as YAML, for Detectron2 without this project."""

from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from dpk_det.architectures import REGISTRIES
from dpk_det.config.keys import add_dpk_config

_FIRST_LINE = "# The plain {} of {}, for Detectron2.\n"


def describe_plain_config(cfg: CfgNode, weights: str) -> tuple[str, str]:
    """Return the values of a plain model's config that differ from Detectron2's defaults.

    If all parts of the model are Detectron2's, the keys that dpk_det adds are left out, and the
    datasets that they define. Then ``get_cfg().merge_from_file`` reads the text, and
    ``build_model`` builds the model. Otherwise the keys stay, except those of distillation.
    ``OUTPUT_DIR`` is left out, so that nobody trains into that folder by mistake.

    Args:
        cfg: config from :func:`dpk_det.architectures.plain_architecture`.
        weights: value of ``MODEL.WEIGHTS``.

    Returns:
        The YAML text, and a sentence on the modules that must be imported before the model is
        built. The sentence is empty if Detectron2 is enough.
    """
    cfg = cfg.clone()
    cfg.defrost()
    defaults = get_cfg()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = weights, defaults.OUTPUT_DIR
    for key in ("DISTILL", "IMPORTS"):
        cfg.pop(key, None)
    needed = _other_projects(cfg)
    if needed:
        add_dpk_config(defaults)
    else:
        _forget_own_datasets(cfg.DATASETS)
    # dumping and reading makes lists of tuples
    content, common = yaml.safe_load(cfg.dump()), yaml.safe_load(defaults.dump())
    different = _difference(content, common, with_new=bool(needed))
    different["VERSION"] = cfg.VERSION  # otherwise Detectron2 guesses it
    different["MODEL"]["META_ARCHITECTURE"] = cfg.MODEL.META_ARCHITECTURE  # for the reader
    text = _FIRST_LINE.format(cfg.MODEL.META_ARCHITECTURE, weights)
    sentence = ""
    if needed:
        parts = ", ".join(f"{name} ({module})" for name, module in needed.items())
        sentence = (
            f"Detectron2 has no {parts}: import {', '.join(sorted({*needed.values()}))} first, and "
            "add its keys to the config (dpk_det.add_dpk_config)."
        )
        text += f"# {sentence}\n"
    return text + yaml.safe_dump(different, sort_keys=True), sentence


def is_plain_config(path: Path) -> bool:
    """Return whether a file is a text of :func:`describe_plain_config`."""
    beginning, _, end = _FIRST_LINE.split("{}")
    with path.open("rb") as file:
        line = file.readline()
    return line.startswith(beginning.encode()) and line.endswith(end.encode())


def _forget_own_datasets(datasets: CfgNode) -> None:
    own = {*datasets.get("JSON", {}), *datasets.get("IMAGES", {})}
    for key in ("TRAIN", "TEST"):
        datasets[key] = tuple(name for name in datasets[key] if name not in own)


def _other_projects(cfg: CfgNode) -> dict[str, str]:
    """Return parts of the model that other packages than Detectron2 register: name -> package."""
    found = {}
    for key, registry in REGISTRIES.items():
        node: Any = cfg
        for part in key.split("."):
            node = node[part]
        if node in registry:
            package = registry.get(node).__module__.partition(".")[0]
            if package != "detectron2":
                found[node] = package
    return found


def _difference(ours: dict, theirs: dict, with_new: bool) -> dict:
    different = {}
    for key, value in ours.items():
        if key not in theirs:
            if with_new:
                different[key] = value
        elif isinstance(value, dict) and isinstance(theirs[key], dict):
            if below := _difference(value, theirs[key], with_new):
                different[key] = below
        elif value != theirs[key]:
            different[key] = value
    return different
