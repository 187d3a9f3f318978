"""Dynamic Prior Knowledge (Qiu et al., ICLR 2023, arXiv:2206.06067); importing registers it.

The authors announced code at Cuibaby/DPK on GitHub, but have not published it there.
"""

from dpk_det.distill.dpk.distiller import DPK

__all__ = ["DPK"]
