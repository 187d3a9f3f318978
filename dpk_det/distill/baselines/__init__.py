"""Methods that DPK is compared with, each from its own paper; importing registers them."""

from .cwd import CWD
from .dkd import DKD
from .fgd import FGD
from .fitnets import FitNets
from .kd import KD
from .mgd import MGD
from .pkd import PKD
from .reviewkd import ReviewKD

__all__ = ["CWD", "DKD", "FGD", "KD", "MGD", "PKD", "FitNets", "ReviewKD"]
