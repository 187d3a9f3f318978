#!/usr/bin/env python
"""Find the values with which each method of a suite does best, and write a suite with these values.

python tools/tune.py my_tuning.yaml
python tools/tune.py my_tuning.yaml --workers 4 --gpus 0 1
"""

from dpk_det.comparison.tuning.command import run

if __name__ == "__main__":
    run()
