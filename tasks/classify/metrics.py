"""Metrics of classification, from sums over images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of the calibration error, as in Guo et al., "On Calibration of Modern Neural Networks"
CONFUSED = 2000  # classes up to which all pairs are counted: at 21,841 they would take 4 GB


def sums(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Float64 sums over a batch.

    Args:
        logits: [B, C].
        labels: class numbers, int64 [B].

    Returns:
        ``images``; ``loss`` (cross-entropy); ``top5``; by class [C] ``class_images`` and ``class_right``; by bin of
        confidence [15] ``bin_images``, ``bin_confidence`` and ``bin_right``; for up to 2000 classes ``confusion``
        [C, C], true class by predicted class.
    """
    logits = logits.double()
    classes = logits.shape[1]
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).double()
    among = logits.topk(min(5, classes), dim=1).indices == labels[:, None]
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # a bin holds its upper bound
    found = {
        "images": torch.tensor(float(len(labels)), dtype=torch.float64),
        "loss": F.cross_entropy(logits, labels, reduction="sum"),
        "top5": among.any(1).double().sum(),
        "class_images": torch.bincount(labels, minlength=classes).double(),
        "class_right": torch.bincount(labels, weights=right, minlength=classes),
        "bin_images": torch.bincount(bins, minlength=BINS).double(),
        "bin_confidence": torch.bincount(bins, weights=confidence, minlength=BINS),
        "bin_right": torch.bincount(bins, weights=right, minlength=BINS),
    }
    if classes <= CONFUSED:
        pairs = torch.bincount(labels * classes + predicted, minlength=classes * classes)
        found["confusion"] = pairs.view(classes, classes).double()
    return found


def summarise(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics of a split; accuracies in percent.

    ``top1``, ``top5``; ``per_class``, the mean of the classes' accuracies; ``calibration``, the expected calibration
    error over 15 bins of equal width, in percent; ``loss``, cross-entropy.
    """
    images = totals["images"]
    gaps = (totals["bin_confidence"] - totals["bin_right"]).abs().sum()
    by_class = 100 * totals["class_right"] / totals["class_images"]  # NaN for a class without images
    return {
        "top1": (100 * totals["class_right"].sum() / images).item(),
        "top5": (100 * totals["top5"] / images).item(),
        "per_class": by_class[~by_class.isnan()].mean().item(),
        "calibration": (100 * gaps / images).item(),
        "loss": (totals["loss"] / images).item(),
    }


def class_accuracy(confusion: Tensor) -> Tensor:
    """Accuracy of each class in percent, [C]; NaN for a class without images."""
    return 100 * confusion.diagonal() / confusion.sum(1)
