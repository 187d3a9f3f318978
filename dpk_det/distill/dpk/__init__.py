"""Dynamic Prior Knowledge (Qiu et al., ICLR 2023, arXiv:2206.06067); importing registers it."""

from dpk_det.distill.dpk.distiller import DPK

__all__ = ["DPK"]
