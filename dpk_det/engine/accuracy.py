"""How often a classifier is right."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor


class AccuracyEvaluator(DatasetEvaluator):
    """Top-1 and top-5 accuracy in percent, and the top-1 accuracy of the images of each class.

    Args:
        classes: their names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        # of each class: images, those that are right, and those right among the five likeliest
        self._counts = torch.zeros(3, len(self.classes), dtype=torch.int64)

    def process(self, inputs: Mapping[str, Tensor], outputs: Tensor) -> None:
        """Count a batch.

        Args:
            inputs: with ``labels`` (B,). outputs: logits (B, K).
        """
        labels = inputs["labels"].to(outputs.device)
        ranked = outputs.topk(min(5, outputs.shape[1])).indices == labels.unsqueeze(1)
        found = (torch.ones_like(ranked[:, 0]), ranked[:, 0], ranked.any(1))
        for row, which in zip(self._counts, found, strict=True):
            row += labels[which].bincount(minlength=len(row)).cpu()

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"cls": {"top1", "top5", "top1-NAME" for each class}}``, of all processes' images.

        Empty in all but the first process. NaN for a class without images.
        """
        comm.synchronize()
        gathered = comm.gather(self._counts)
        if not comm.is_main_process():
            return {}
        images, first, five = sum(gathered)
        top1, top5 = (100 * hits.sum() / images.sum() for hits in (first, five))
        of_each = (100 * first / images).tolist()
        names = (f"top1-{name}" for name in self.classes)
        figures = itertools.chain(
            [("top1", top1.item()), ("top5", top5.item())], zip(names, of_each, strict=True)
        )
        return {"cls": dict(figures)}
