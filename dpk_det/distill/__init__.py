"""Distillation methods on feature maps and logits. They need torch and msgspec, but no detector."""

from dpk_det.distill import baselines  # noqa: F401  (they register themselves)
from dpk_det.distill.contract import Distiller, Features, Level, Logits, Targets
from dpk_det.distill.dpk import DPK
from dpk_det.distill.dpk.cka import MinibatchCKA, linear_cka
from dpk_det.distill.registry import DISTILLERS, build_distiller, register_distiller

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
