"""The benchmarks are scripts: their folder is on the path when they are started."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
