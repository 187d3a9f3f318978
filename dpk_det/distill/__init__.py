"""What is learned: distillation methods on feature maps. Needs torch only, knows no detector."""

from .cka import MinibatchCKA, linear_cka
from .dpk import DPK
from .registry import (
    DISTILLERS,
    Distiller,
    Features,
    Level,
    build_distiller,
    register_distiller,
)

__all__ = [
    "DISTILLERS",
    "DPK",
    "Distiller",
    "Features",
    "Level",
    "MinibatchCKA",
    "build_distiller",
    "linear_cka",
    "register_distiller",
]
