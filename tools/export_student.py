#!/usr/bin/env python
"""Write the plain student alone: its weights, TorchScript or ONNX, by the suffix of the output.

python tools/export_student.py --config-file configs/... output/.../model_final.pth student.pth
python tools/export_student.py ... student.safetensors
python tools/export_student.py ... student.ts
python tools/export_student.py ... student.onnx
"""

from dpk_det.deploy.export import run

if __name__ == "__main__":
    run()
