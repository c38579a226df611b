"""The seasonal naive forecast: the last season, again and again.

"Forecasting: Principles and Practice", Hyndman and Athanasopoulos, 3rd edition, section 5.2 (no arXiv number).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.errors import InputError


class SeasonalNaive(nn.Module):
    """Step h of the forecast is the latest known value at the same phase of the season; nothing is learned.

    Args:
        lookback: input steps.
        horizon: output steps.
        period: steps of a season; 1 repeats the last value.
    """

    uses_marks = False

    def __init__(self, lookback: int, horizon: int, *, period: int):
        super().__init__()
        if not 1 <= period <= lookback:
            raise InputError(
                f"period {period} is not between 1 and lookback {lookback}", "Lower period, or raise lookback"
            )
        if horizon < 1:
            raise InputError(f"horizon is {horizon}", "It must be at least 1")
        self.lookback, self.horizon, self.period = lookback, horizon, period

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, D]`` to ``[B, H, D]``."""
        phase = torch.arange(self.horizon, device=x.device) % self.period
        return x[:, x.shape[1] - self.period + phase]


VARIANTS = {"seasonal_naive": "SeasonalNaive"}
