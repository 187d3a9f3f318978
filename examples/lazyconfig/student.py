"""LazyConfig of the project's student: the Faster R-CNN of configs/shapes/plain.yaml."""

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from dpk_det.modeling import small_resnet

MAPS = ["p2", "p3", "p4"]

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.pixel_mean, model.pixel_std = [127.5] * 3, [64.0] * 3
stages = ["res2", "res3", "res4"]
model.backbone.update(
    bottom_up=L(small_resnet)(widths=[16, 32, 64], blocks=[1, 1, 1], out_features=stages),
    in_features=stages,
    out_channels=64,
    top_block=None,
)
proposals = model.proposal_generator
proposals.in_features = MAPS
proposals.head.update(in_channels=64, num_anchors=1)
proposals.anchor_generator.update(sizes=[[12], [24], [48]], aspect_ratios=[1.0], strides=[4, 8, 16])
proposals.update(batch_size_per_image=64, pre_nms_topk=(200, 100), post_nms_topk=(200, 50))
heads = model.roi_heads
for name in ("mask_in_features", "mask_pooler", "mask_head"):
    heads.pop(name)
heads.update(num_classes=6, batch_size_per_image=32, box_in_features=MAPS)
heads.box_pooler.update(output_size=5, scales=(1 / 4, 1 / 8, 1 / 16))
heads.box_head.update(input_shape=ShapeSpec(channels=64, height=5, width=5), fc_dims=[128, 128])
heads.box_predictor.input_shape = ShapeSpec(channels=128)


def mapper(is_train, *augmentations):
    resize = L(T.ResizeShortestEdge)(short_edge_length=96, max_size=96)
    augmentations = [resize, *augmentations]
    return L(DatasetMapper)(is_train=is_train, augmentations=augmentations, image_format="BGR")


dataloader = {
    "train": L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="shapes_train"),
        mapper=mapper(True, L(T.RandomFlip)()),
        total_batch_size=8,
        num_workers=0,
    ),
    "test": L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="shapes_val", filter_empty=False),
        mapper=mapper(False),
        num_workers=0,
    ),
    "evaluator": L(COCOEvaluator)(dataset_name="shapes_val", output_dir="${train.output_dir}"),
}
optimizer = model_zoo.get_config("common/optim.py").SGD
optimizer.lr = 0.02
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1, end_value=0),
    warmup_factor=0.001,
    warmup_length=1 / 3,
    warmup_method="linear",
)
train = model_zoo.get_config("common/train.py").train
train.output_dir = "output/examples/lazyconfig/plain"
train.max_iter = 300
train.eval_period = 0
train.device = "cuda" if torch.cuda.is_available() else "cpu"
train.seed = 1
