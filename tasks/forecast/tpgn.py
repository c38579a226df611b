"""TPGN: periods as rows, a parallel gated network down the columns and a second branch along the rows.

"PGN: The RNN's New Successor is Effective for Long-Range Time Series Forecasting", Jia et al., NeurIPS 2024,
arXiv 2409.17703, section 4. Every channel has weights of its own and sees no other channel.

Legend: B windows, c channels, L look-back, H horizon, q steps of a period, R = L / q rows, F features of a cell (its
value and the calendar marks), d hidden channels (``dim``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.blocks.grouped_linear import GroupedLinear
from toolkit.blocks.normalization import instance_normalise
from toolkit.blocks.parallel_gated import ParallelGatedUnit
from toolkit.errors import InputError


class TPGN(nn.Module):
    """Forecast each channel from its own past, folded into rows of one period.

    Args:
        lookback: input steps L, at least two periods.
        horizon: output steps H.
        num_variates: channels c.
        num_marks: calendar features of a step; 0: none.
        period_len: steps q of a row; must divide ``lookback`` and ``horizon``.
        dim: hidden channels d of each branch.
        norm: subtract the mean and divide by the deviation of each window, and undo it at the end.

    Raises:
        InputError: a size that cannot be, or lengths that are not multiples of the period.
    """

    uses_marks = True

    def __init__(
        self,
        lookback: int,
        horizon: int,
        num_variates: int,
        num_marks: int,
        *,
        period_len: int = 24,
        dim: int = 32,
        norm: bool = False,
    ):
        super().__init__()
        sizes = {
            "lookback": lookback,
            "horizon": horizon,
            "num_variates": num_variates,
            "period_len": period_len,
            "dim": dim,
        }
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name} is {size}", "It must be at least 1")
        if num_marks < 0:
            raise InputError(f"num_marks is {num_marks}", "It must be at least 0")
        for name, steps, periods in (("lookback", lookback, 2), ("horizon", horizon, 1)):
            if steps % period_len or steps < periods * period_len:
                low, high = (max(steps // period_len + more, periods) * period_len for more in (0, 1))
                raise InputError(
                    f"{name} {steps} is not a multiple of period_len {period_len}"
                    if steps % period_len
                    else f"{name} {steps} is shorter than {periods} periods of {period_len}",
                    f"Choose {name}={low}{f' or {high}' if high > low else ''}, or another model.period_len",
                )
        self.lookback, self.horizon = lookback, horizon
        self.num_variates, self.num_marks = num_variates, num_marks
        self.period_len, self.dim, self.norm = period_len, dim, norm

        rows, features = lookback // period_len, 1 + num_marks
        self.pgn = ParallelGatedUnit(features, dim, rows, num_groups=num_variates)
        self.row_aggregation = GroupedLinear(num_variates, rows * dim, dim)
        self.row_encoder = GroupedLinear(num_variates, period_len * features, dim)
        self.column_encoder = GroupedLinear(num_variates, rows * dim, dim)
        # One map of [short; long] in two parts: the short branch is the same for every column, so it is mapped once.
        self.output_short = GroupedLinear(num_variates, dim, horizon // period_len, fan_in=2 * dim)
        self.output_long = GroupedLinear(num_variates, dim, horizon // period_len, bias=False, fan_in=2 * dim)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """Map standardised values ``[B, L, c]`` and calendar marks ``[B, L, num_marks]`` to ``[B, H, c]``."""
        self._check(x, marks)
        series = x.transpose(1, 2)  # [B, c, L]
        if not self.norm:
            return self.normalised_forecast(series, marks).transpose(1, 2)
        series, mean, scale = instance_normalise(series)
        return torch.addcmul(mean, self.normalised_forecast(series, marks), scale).transpose(1, 2)

    def normalised_forecast(self, series: Tensor, marks: Tensor | None) -> Tensor:
        """The two branches and their join: ``[B, c, L]`` to ``[B, c, H]``."""
        batch, channels, _ = series.shape
        q, rows = self.period_len, self.lookback // self.period_len
        cells = series.transpose(0, 1).unsqueeze(-1)  # [c, B, L, 1]
        if marks is not None:
            cells = torch.cat((cells, marks.expand(channels, -1, -1, -1)), dim=-1)  # [c, B, L, F]
        cells = cells.reshape(channels, batch, rows, q, -1)

        # Long-term branch: each of the q columns is a sequence of R steps, one period apart.
        hidden = self.pgn(cells.transpose(2, 3).flatten(1, 2))  # [c, B q, R, d]
        long_term = self.row_aggregation(hidden.flatten(2))  # [c, B q, d]

        # Short-term branch: each row is a patch; then one vector from all rows.
        patches = self.row_encoder(cells.reshape(channels, batch * rows, -1))  # [c, B R, d]
        short_term = self.column_encoder(patches.view(channels, batch, -1))  # [c, B, d]

        # Each column forecasts its phase of the next H / q periods.
        columns = self.output_short(short_term).repeat_interleave(q, dim=1)
        columns = self.output_long(long_term, added=columns)  # [c, B q, H / q]
        return columns.view(channels, batch, q, -1).permute(1, 0, 3, 2).reshape(batch, channels, self.horizon)

    def _check(self, x: Tensor, marks: Tensor | None) -> None:
        if x.shape[1:] != (self.lookback, self.num_variates):
            raise InputError(
                f"the input has {x.shape[1]} steps of {x.shape[2]} variates, "
                f"the model takes {self.lookback} of {self.num_variates}",
                "TPGN has weights for each variate: give the columns that it was made for",
            )
        found = 0 if marks is None else marks.shape[2]
        if found != self.num_marks:
            raise InputError(
                f"the input has {found} calendar marks, the model takes {self.num_marks}",
                "Give a table with time stamps of the step that it was made for" if self.num_marks else "Give none",
            )


VARIANTS = {"tpgn": "TPGN"}
