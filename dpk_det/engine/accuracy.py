"""The accuracy of a classifier."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor


class AccuracyEvaluator(DatasetEvaluator):
    """Measures top-1 and top-5 accuracy in percent, and the top-1 accuracy of each class.

    Args:
        classes: the names of the classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.reset()

    def reset(self) -> None:
        """Set all counts to 0."""
        # Rows: images, images right at top 1, images right at top 5. Columns: classes.
        self._counts = torch.zeros(3, len(self.classes), dtype=torch.int64)

    def process(self, inputs: Mapping[str, Tensor], outputs: Tensor) -> None:
        """Count the correct images of a batch.

        Args:
            inputs: a dict with ``labels`` (B,).
            outputs: logits (B, K).
        """
        labels = inputs["labels"].to(outputs.device)
        ranked = outputs.topk(min(5, outputs.shape[1])).indices == labels.unsqueeze(1)
        found = (torch.ones_like(ranked[:, 0]), ranked[:, 0], ranked.any(1))
        for row, which in zip(self._counts, found, strict=True):
            row += labels[which].bincount(minlength=len(row)).cpu()

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return ``{"cls": {"top1", "top5", "top1-NAME" for each class}}`` over all processes.

        The dict is empty in all processes but the first. A class without images has NaN.
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
