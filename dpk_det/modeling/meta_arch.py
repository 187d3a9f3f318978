"""Distilling meta-architectures for configs: build the plain model, then attach distillation.

They are functions, which Detectron2's registry calls like classes. They return an instance of the
plain class, and its weights have the plain names.
"""

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from dpk_det.architectures import distilling_names
from dpk_det.errors import UserError, find
from dpk_det.pairing.distil import attach_from_config


def register_distilled(plain_name: str, name: str | None = None) -> str:
    """Register a distilling version of a registered meta-architecture.

    Configs can then set ``MODEL.META_ARCHITECTURE: name``. Evaluation, export and teachers use the
    plain meta-architecture. Registering the same pair again changes nothing.

    Args:
        plain_name: its name in Detectron2's ``META_ARCH_REGISTRY``. Its models need a ``backbone``,
            and their forward in training must return a dict of losses.
        name: the new name; by default "Distill" followed by the plain name.

    Returns:
        The new name.

    Raises:
        UserError: if the plain name is not registered (the message names the nearest) or already
            distils, or if the new name is already registered for something else.
    """
    find(dict(META_ARCH_REGISTRY), plain_name, "meta-architecture")
    known = distilling_names()
    if plain_name in known:
        raise UserError(
            f"{plain_name} distils already: use it, or register the plain {known[plain_name]}."
        )
    name = name or f"Distill{plain_name}"
    if known.get(name) == plain_name:
        return name
    if name in META_ARCH_REGISTRY:
        raise UserError(
            f"The meta-architecture {name} is registered already, as something else than the "
            f"distilling {plain_name}: choose another name."
        )

    def build(cfg: CfgNode) -> nn.Module:
        return attach_from_config(META_ARCH_REGISTRY.get(plain_name)(cfg), cfg)

    build.__name__ = build.__qualname__ = name  # the registry uses this name
    build.__doc__ = f"{plain_name} that learns from ``cfg.DISTILL.TEACHER``."
    build.plain_name = plain_name  # see dpk_det.architectures
    META_ARCH_REGISTRY.register(build)
    return name
