"""Errors of the forecasting protocol, as sums that can be added over batches and processes.

MSE and MAE are means over all windows, steps and variates of the standardised series; float64 accumulation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def error_sums(forecast: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Sums over the windows of a batch.

    Args:
        forecast, truth: (B, H, D).

    Returns:
        ``squared`` and ``absolute`` (H, D) and the number of ``windows`` (), float64.
    """
    difference = (forecast - truth).double()
    return {
        "squared": difference.square().sum(0),
        "absolute": difference.abs().sum(0),
        "windows": torch.tensor(float(len(truth)), dtype=torch.float64, device=truth.device),
    }


def summarise(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """``mse``, ``mae``, ``rmse`` and the number of ``windows``, from added ``error_sums``."""
    mse = (sums["squared"].mean() / sums["windows"]).item()
    mae = (sums["absolute"].mean() / sums["windows"]).item()
    return {"mse": mse, "mae": mae, "rmse": mse**0.5, "windows": int(sums["windows"].item())}
