"""Normalisation of a window of a time series by its own statistics."""

from __future__ import annotations

import torch
from torch import Tensor


def instance_normalise(x: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """``(x - m) / s`` per sample and series, with ``m`` the mean over time and ``s = sqrt(variance + eps)``.

    Args:
        x: ``[..., L]``, time last.
        eps: added to the biased variance.

    Returns:
        The normalised series ``[..., L]``, ``m`` and ``s`` (both ``[..., 1]``).
    """
    normalised, mean, reciprocal = torch.native_layer_norm(x.contiguous(), x.shape[-1:], None, None, eps)
    return normalised, mean, reciprocal.reciprocal()
