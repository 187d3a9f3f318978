"""Methods that DPK is compared with, each from its own paper; importing registers them."""

from dpk_det.distill.baselines.cwd import CWD
from dpk_det.distill.baselines.dkd import DKD
from dpk_det.distill.baselines.fgd import FGD
from dpk_det.distill.baselines.fitnets import FitNets
from dpk_det.distill.baselines.kd import KD
from dpk_det.distill.baselines.mgd import MGD
from dpk_det.distill.baselines.pkd import PKD
from dpk_det.distill.baselines.reviewkd import ReviewKD

__all__ = ["CWD", "DKD", "FGD", "KD", "MGD", "PKD", "FitNets", "ReviewKD"]
