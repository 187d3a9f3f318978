"""Extract the backbone's bottom-up network from a detector's checkpoint, to start others from it.

python examples/backbone.py DETECTOR.pth BACKBONE.pth
"""

import sys
from pathlib import Path

import torch

source, target = map(Path, sys.argv[1:])
state = torch.load(source, map_location="cpu", weights_only=True)["model"]
backbone = {key: x for key, x in state.items() if key.startswith("backbone.bottom_up.")}
target.parent.mkdir(parents=True, exist_ok=True)
torch.save({"model": backbone}, target)
