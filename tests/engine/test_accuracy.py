"""Accuracy, against counting by hand."""

import math

import pytest
import torch
from detectron2.utils import comm

from dpk_det.engine.accuracy import AccuracyEvaluator


def test_figures_are_those_counted_by_hand():
    torch.manual_seed(0)
    classes = [f"c{i}" for i in range(8)]
    logits, labels = torch.randn(60, 8), torch.randint(7, (60,))  # none of the last class
    evaluator = AccuracyEvaluator(classes)
    evaluator.process({"labels": labels[:1]}, logits[:1])
    evaluator.reset()
    for rows in (slice(0, 25), slice(25, 60)):
        evaluator.process({"labels": labels[rows]}, logits[rows])
    figures = evaluator.evaluate()["cls"]
    order = [sorted(range(8), key=lambda k: -x[k]) for x in logits]
    ranks = [x.index(y) for x, y in zip(order, labels, strict=True)]
    assert figures["top1"] == pytest.approx(100 * sum(r == 0 for r in ranks) / 60)
    assert figures["top5"] == pytest.approx(100 * sum(r < 5 for r in ranks) / 60)
    for k in range(7):
        own = [r == 0 for r, y in zip(ranks, labels, strict=True) if y == k]
        assert figures[f"top1-c{k}"] == pytest.approx(100 * sum(own) / len(own))
    assert math.isnan(figures["top1-c7"])


def test_with_few_classes_all_are_among_the_likeliest():
    evaluator = AccuracyEvaluator(["a", "b"])
    evaluator.process({"labels": torch.tensor([0, 1])}, torch.tensor([[0.0, 1], [0, 1]]))
    assert evaluator.evaluate() == {"cls": {"top1": 50, "top5": 100, "top1-a": 0, "top1-b": 100}}


def test_processes_are_added_up_in_the_first(monkeypatch):
    evaluator = AccuracyEvaluator(["a", "b"])
    evaluator.process({"labels": torch.tensor([0])}, torch.tensor([[1.0, 0]]))
    other = torch.tensor([[3, 0], [0, 0], [3, 0]])
    monkeypatch.setattr(comm, "gather", lambda own: [own, other])
    assert evaluator.evaluate()["cls"]["top1"] == 25
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() == {}
