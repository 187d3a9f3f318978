"""Reads the methods' arguments from a config, and finds keys that have no effect."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, get_cfg

from dpk_det.architectures import distilling_names
from dpk_det.config.keys import add_dpk_config
from dpk_det.config.values import flatten
from dpk_det.distill import DISTILLERS
from dpk_det.distill.arguments import REQUIRED, check_arguments, list_arguments
from dpk_det.errors import UserError, check_names, find


def method_arguments(cfg: CfgNode) -> dict[str, dict]:
    """Return the arguments of each of ``DISTILL.METHODS``: its node's keys in lower case.

    Besides the constructor's arguments they can include ``levels``, names of the student's maps.

    Raises:
        UserError: if ``DISTILL.METHODS`` is no list of names or names a method twice.
    """
    check_names(cfg.DISTILL.METHODS, "DISTILL.METHODS")
    nodes = _method_nodes(cfg)
    return {name: nodes.get(name, {}) for name in cfg.DISTILL.METHODS}


def _method_nodes(cfg: CfgNode) -> dict[str, dict]:
    return {
        name.lower(): _arguments(name.lower(), node)
        for name, node in cfg.DISTILL.items()
        if isinstance(node, CfgNode) and name != "TEACHER"
    }


def _arguments(method: str, node: Mapping[str, Any]) -> dict[str, Any]:
    required = _required(method)
    given = {key.lower(): value for key, value in node.items()}
    # a required argument that is None counts as not given
    return {key: value for key, value in given.items() if value is not None or key not in required}


def _required(method: str) -> set[str]:
    known = list_arguments(DISTILLERS[method])[0] if method in DISTILLERS else {}
    return {name for name, argument in known.items() if argument.default is REQUIRED}


def check_distillation(cfg: CfgNode) -> None:
    """Check, before anything is built, that the keys of ``DISTILL`` are valid and have an effect.

    Raises:
        UserError: if a key is given that a plain ``META_ARCHITECTURE`` does not use, or a method is
            unknown, named twice or has an argument out of its range.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    twins = [other for other, plain in distilling_names().items() if plain == name]
    if twins:
        used = ["INHERIT", "TEACHER."] if cfg.DISTILL.INHERIT else []
        used += [f"{method.upper()}." for method in _method_nodes(cfg)]  # unused_keys reports these
        for key in _given(cfg):
            if not key.startswith(tuple(used)):
                raise UserError(
                    f"DISTILL.{key} is given, but a {name} does not distil and makes no use of it: "
                    f"take it out, or set MODEL.META_ARCHITECTURE to {twins[0]}."
                )
    else:
        for method, arguments in method_arguments(cfg).items():
            arguments.pop("levels", None)  # can only be checked with the networks
            check_arguments(method, find(DISTILLERS, method, "distiller"), arguments)
    for method, arguments in _method_nodes(cfg).items():
        arguments.pop("levels", None)  # can only be checked with the networks
        if method in DISTILLERS and _required(method) <= arguments.keys():
            check_arguments(method, DISTILLERS[method], arguments)


def unused_keys(cfg: CfgNode) -> list[str]:
    """Return the keys of methods that do not run, if their values are not the defaults.

    They are no error, because a base config may set them for the configs built on it.
    """
    is_plain = cfg.MODEL.META_ARCHITECTURE in distilling_names().values()
    unused = _method_nodes(cfg).keys() - {*(() if is_plain else cfg.DISTILL.METHODS)}
    return [f"DISTILL.{key}" for key in _given(cfg) if key.partition(".")[0].lower() in unused]


def _given(cfg: CfgNode) -> list[str]:
    """Return the keys below ``DISTILL`` whose value is not the default."""
    default = get_cfg()
    add_dpk_config(default)
    known = dict(flatten(default.DISTILL))
    return [key for key, value in flatten(cfg.DISTILL) if known.get(key, value) != value]


def comparable(content: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten the keys of a dumped config, so that configs with the same meaning are equal.

    Arguments that another argument implies, such as ``DISTILL.DPK.FORM``, are filled in.
    """
    flat = dict(flatten(content))
    distill = content.get("DISTILL") or {}
    for method, constructor in DISTILLERS.items():
        node = distill.get(method.upper())
        if isinstance(node, Mapping) and hasattr(constructor, "settle"):
            settled = constructor.settle({key.lower(): value for key, value in node.items()})
            flat |= {f"DISTILL.{method}.{key}".upper(): v for key, v in settled.items()}
    return flat
