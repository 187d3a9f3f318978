#!/usr/bin/env python
"""Detect objects in images and videos: draw them, and write them as COCO JSON.

python tools/predict.py --config-file configs/... --weights output/.../model_final.pth \\
    --input photos/ clip.mp4 --output output/found
"""

from dpk_det.engine.predict import run

if __name__ == "__main__":
    run()
