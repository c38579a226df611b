"""Prediction intervals by split-conformal calibration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from toolkit.tasks.forecast.task import Forecast

MOST_RESIDUALS = 20_000_000  # 80 MB


@torch.inference_mode()
def calibrate(task: Forecast) -> Tensor:
    """Half-widths of the intervals: a quantile of |error| per step and variate over the validation windows.

    Of n windows the error of rank ceil((n + 1) coverage) is taken (Lei et al., Distribution-Free Predictive Inference
    for Regression, 2018, section 2). Where all windows would take too much memory, evenly spaced ones stand for them.
    Neighbouring windows are not exchangeable, so the coverage is measured on the test span and not promised.

    Returns:
        (H, D) in standardised units; D = 1 with a single target.
    """
    count, scored = task.data.num_windows("val"), task.config.horizon * len(task.data.outputs)
    chosen = torch.arange(0, count, max(1, math.ceil(count * scored / MOST_RESIDUALS)))
    task.model.eval()
    errors = []
    for indices in chosen.split(task.config.eval_batch_size):
        x, y, marks = task.data.batch("val", indices)
        errors.append((task.forecast(x, marks).float().cpu() - y).abs())
    residuals = torch.cat(errors)
    rank = min(math.ceil((len(residuals) + 1) * task.config.coverage), len(residuals))
    return residuals.kthvalue(rank, dim=0).values
