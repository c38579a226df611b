"""DLinear: one linear map for the trend of a series and one for the rest.

"Are Transformers Effective for Time Series Forecasting?", Zeng et al., arXiv 2205.13504, section 4.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.errors import InputError


class DLinear(nn.Module):
    """Trend (a moving average) and remainder, each mapped to the horizon; all variates share both maps.

    Args:
        lookback: input steps.
        horizon: output steps.
        kernel_size: width of the moving average; odd.
    """

    uses_marks = False
    takes = "series"  # as a host of the gate (``gated.py``)

    def __init__(self, lookback: int, horizon: int, *, kernel_size: int = 25):
        super().__init__()
        if min(lookback, horizon) < 1:
            raise InputError(f"lookback is {lookback} and horizon {horizon}", "Both must be at least 1")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"kernel_size is {kernel_size}", "A centred moving average needs an odd, positive width")
        self.lookback, self.horizon, self.kernel_size = lookback, horizon, kernel_size
        self.seasonal = nn.Linear(lookback, horizon)
        self.trend = nn.Linear(lookback, horizon)
        nn.init.constant_(self.seasonal.weight, 1 / lookback)
        nn.init.constant_(self.trend.weight, 1 / lookback)

    def forward(self, x: Tensor) -> Tensor:
        """Map standardised values ``[B, L, D]`` to ``[B, H, D]``."""
        return self.encode(x.transpose(1, 2)).transpose(1, 2)

    def encode(self, series: Tensor) -> Tensor:
        """Map ``[..., D, L]`` to ``[..., D, H]``: the forecast is all that the model knows of a series."""
        margin = self.kernel_size // 2
        trend = F.avg_pool1d(F.pad(series, (margin, margin), mode="replicate"), self.kernel_size, stride=1)
        return self.seasonal(series - trend) + self.trend(trend)


VARIANTS = {"dlinear": "DLinear"}
