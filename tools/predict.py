#!/usr/bin/env python
"""Detect objects in images and videos, or classify them; draw the results and write COCO JSON.

python tools/predict.py --config-file configs/... --weights output/.../model_final.pth \\
    --input photos/ clip.mp4 --output output/found
"""

from dpk_det.deploy.predict import run

if __name__ == "__main__":
    run()
