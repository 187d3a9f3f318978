#!/usr/bin/env python
"""Train, distil, evaluate or check a detector.

python tools/train_net.py --config-file configs/dpk_frcnn_r101_r18.yaml --num-gpus 8
python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/.../model_final.pth
python tools/train_net.py --config-file ... --check
"""

from dpk_det.engine.train import run

if __name__ == "__main__":
    run()
