"""What is learned: distillation methods on feature maps. Needs torch and msgspec, no detector."""

from . import baselines  # noqa: F401  (they register themselves)
from .cka import MinibatchCKA, linear_cka
from .dpk import DPK
from .registry import (
    DISTILLERS,
    Distiller,
    Features,
    Level,
    Logits,
    Targets,
    build_distiller,
    register_distiller,
)

__all__ = [
    "DISTILLERS",
    "DPK",
    "Distiller",
    "Features",
    "Level",
    "Logits",
    "MinibatchCKA",
    "Targets",
    "build_distiller",
    "linear_cka",
    "register_distiller",
]
