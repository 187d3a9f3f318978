#!/usr/bin/env python
"""Rank the teachers of a suite for one student, by measuring them and by short trials.

python tools/rank_teachers.py configs/compare/shapes_teachers.yaml --only dpk-small dpk dpk-large
"""

from dpk_det.comparison.teachers import run

if __name__ == "__main__":
    run()
