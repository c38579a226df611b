"""Metrics from sums, against torchmetrics on the whole."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from toolkit.tasks.classify.metrics import class_accuracy, summarise, sums


@pytest.fixture
def predictions():
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (200,), generator=draws)
    return 2 * torch.randn(200, 7, generator=draws) + 2 * torch.nn.functional.one_hot(labels, 7), labels


def test_sums_over_batches_are_the_metrics_of_the_whole(predictions):
    logits, labels = predictions
    total: dict[str, torch.Tensor] = {}
    for part, own in zip(logits.split(33), labels.split(33), strict=True):
        for name, value in sums(part, own).items():
            total[name] = total.get(name, 0) + value
    found = summarise(total)
    accuracy = {k: multiclass_accuracy(logits, labels, 7, average="micro", top_k=k).item() for k in (1, 5)}
    assert found["top1"] == pytest.approx(100 * accuracy[1])
    assert found["top5"] == pytest.approx(100 * accuracy[5])
    assert found["per_class"] == pytest.approx(100 * multiclass_accuracy(logits, labels, 7, average="macro").item())
    error = multiclass_calibration_error(logits.double().softmax(1), labels, 7, n_bins=15, norm="l1").item()
    assert found["calibration"] == pytest.approx(100 * error, rel=1e-6)
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_a_class_without_images_counts_nowhere(predictions):
    logits, labels = predictions
    keep = labels != 3
    total = sums(logits[keep], labels[keep])
    assert class_accuracy(total["confusion"])[3].isnan()
    assert 0 < summarise(total)["per_class"] <= 100


def test_fewer_than_five_classes():
    found = summarise(sums(torch.eye(3), torch.arange(3)))
    assert found["top1"] == found["top5"] == 100
