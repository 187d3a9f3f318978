#!/usr/bin/env python
"""Write the plain student alone: its weights, TorchScript or ONNX, by the suffix of the output.

python tools/export_student.py --config-file configs/... output/.../model_final.pth student.pth
python tools/export_student.py ... student.safetensors
python tools/export_student.py ... student.ts
python tools/export_student.py ... student.onnx
"""

import argparse

from dpk_det.deploy.export import export_student
from dpk_det.engine.ends import exit_on_user_error

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the training")
    parser.add_argument("weights", help="checkpoint of the training")
    parser.add_argument("output", help="file to write: *.pth, *.safetensors, *.ts or *.onnx")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="further KEY VALUE overrides")
    args = parser.parse_args()
    with exit_on_user_error():
        print(export_student(args.config_file, args.weights, args.output, args.opts))
