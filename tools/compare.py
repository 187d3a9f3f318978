#!/usr/bin/env python
"""Train the teachers of a suite and every method with every seed, and report.

python tools/compare.py configs/compare/demo.yaml
python tools/compare.py configs/compare/demo.yaml --seeds 1 2 3 4 --output output/seeds --gpus 0 1
"""

from dpk_det.comparison.command import run

if __name__ == "__main__":
    run()
