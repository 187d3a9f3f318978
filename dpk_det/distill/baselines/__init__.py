"""Methods that DPK is compared with, each from its own paper; importing registers them."""

from dpk_det.distill.baselines import (  # noqa: F401
    cwd,
    dkd,
    fgd,
    fitnets,
    kd,
    mgd,
    pkd,
    reviewkd,
)
