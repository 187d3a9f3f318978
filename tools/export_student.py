#!/usr/bin/env python
"""Write a checkpoint that holds the plain student only, for Detectron2 without dpk_det.

python tools/export_student.py --config-file configs/... output/.../model_final.pth student.pth
"""

import argparse

from dpk_det.engine import export_student
from dpk_det.engine.launch import exit_on_user_error

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help="config of the training")
    parser.add_argument("weights", help="checkpoint of the training")
    parser.add_argument("output", help="file to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="further KEY VALUE overrides")
    args = parser.parse_args()
    with exit_on_user_error():
        print(export_student(args.config_file, args.weights, args.output, args.opts))
