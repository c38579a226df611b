"""Rolling origins: where a table is cut for time-series cross-validation, and which rows each cut uses.

A cutoff is the number of rows that are known at an origin. "Forecasting: Principles and Practice", Hyndman and
Athanasopoulos, 3rd edition, section 5.10; names as in statsforecast and neuralforecast.
"""

from __future__ import annotations

from toolkit.errors import InputError

Borders = dict[str, tuple[int, int]]


def cutoffs(rows: int, horizon: int, n_windows: int, step_size: int | None = None) -> list[int]:
    """Ascending cutoffs, ``step_size`` rows apart; the horizon of the last one ends with the table.

    Args:
        rows: of the table.
        horizon: rows that are forecast at each cutoff.
        n_windows: number of cutoffs.
        step_size: rows between cutoffs; None: a horizon, so that every row is forecast once.

    Raises:
        InputError: an argument below 1, or the first cutoff leaves no row to train on.
    """
    step = horizon if step_size is None else step_size
    for name, value in (("n_windows", n_windows), ("step_size", step)):
        if value < 1:
            raise InputError(f"{name} is {value}", "It must be at least 1")
    found = [rows - horizon - step * back for back in reversed(range(n_windows))]
    if found[0] < 1:
        raise InputError(
            f"{n_windows} windows of {horizon} rows, {step} apart, take more than the table's {rows} rows",
            "Lower n_windows or step_size",
        )
    return found


def cutoff_borders(name: str, cutoff: int, rows: int, lookback: int, horizon: int) -> Borders:
    """Rows [start, stop) of each split at an origin: the ``horizon`` rows from row ``cutoff`` on are the test.

    Of the rows before it the last eighth, but no fewer than a horizon, are for validation, as in a split of 7:1:2.
    What follows the horizon is not used.

    Args:
        name: of the table, for messages.

    Raises:
        InputError: a part has no window.
    """
    train = cutoff - max(cutoff // 8, horizon)
    if train < lookback + horizon or cutoff + horizon > rows:
        least = next(
            known
            for known in range(lookback, 8 * (lookback + 3 * horizon))
            if known - max(known // 8, horizon) >= lookback + horizon
        )
        raise InputError(
            f"{name}: no origin after {cutoff} of {rows} rows with lookback={lookback} and horizon={horizon}",
            f"It must lie between {least} and {rows - horizon}"
            if least <= rows - horizon
            else f"The table needs at least {least + horizon} rows",
        )
    return {"train": (0, train), "val": (train - lookback, cutoff), "test": (cutoff - lookback, cutoff + horizon)}
