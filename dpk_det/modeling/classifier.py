"""An image classifier on any of Detectron2's backbones.

Shapes: B images of H x W pixels, K classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """A linear layer on the mean over the cells of the backbone's last map.

    A batch is one dict of tensors: ``images`` (B, 3, H, W) from 0 to 255, and ``labels`` (B,).

    Args:
        backbone: the head reads the last of its maps.
        num_classes: K.
        pixel_mean: mean of each channel, on the scale 0 to 255.
        pixel_std: standard deviation of each channel, on the same scale.
        loss_weight: weight of the cross-entropy.
        label_smoothing: share of the target that is spread evenly over the classes.
    """

    takes_tensors = True
    """A batch is a dict of tensors, not Detectron2's list."""

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        loss_weight: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._last, shape = list(backbone.output_shape().items())[-1]
        self.head = nn.Linear(shape.channels, num_classes)
        self.loss_weight, self.label_smoothing = loss_weight, label_smoothing
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the constructor's arguments that a config describes."""
        node = cfg.MODEL.CLASSIFIER
        return {
            "backbone": build_backbone(cfg),
            "num_classes": node.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "loss_weight": node.LOSS_WEIGHT,
            "label_smoothing": node.LABEL_SMOOTHING,
        }

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.pixel_mean.device

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return self.head.out_features

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor] | Tensor:
        """Return ``loss_cls`` in training, otherwise logits (B, K), which need no labels."""
        logits = self.classify(self.backbone(self.preprocess_image(batch).tensor))
        if not self.training:
            return logits
        labels = batch["labels"].to(self.device)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        return {"loss_cls": self.loss_weight * loss}

    def classify(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Return logits (B, K) from the backbone's maps."""
        return self.head(maps[self._last].mean((2, 3)))

    def preprocess_image(self, batch: Mapping[str, Tensor]) -> ImageList:
        """Normalise the images. All images of a batch have one size, so they need no padding."""
        images = (batch["images"].to(self.device) - self.pixel_mean) / self.pixel_std
        return ImageList(images, [tuple(images.shape[-2:])] * len(images))
