"""From a table to batches: borders, standardisation and windows of the long-term forecasting protocol.

L is the look-back, H the horizon, D the number of columns, T that of rows, B the batch. The standardised table is one
float32 tensor; the windows of a batch are gathered from a strided view of it, so no window is ever stored.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit import registry
from toolkit.data import cards
from toolkit.data.cache import find
from toolkit.data.stamps import CALENDAR, calendar_features, calendar_kind, future_stamps
from toolkit.data.tables import Table, read_table
from toolkit.errors import InputError, nearest
from toolkit.tasks.forecast.crossval import Borders, cutoff_borders

Split = Literal["train", "val", "test"]
Mode = Literal["M", "S", "MS"]

SPLITS = ("ett_hour", "ett_minute", "ratio_7_1_2", "ratio_6_2_2", "solar", "pems")
"""Rules of the borders between training, validation and test rows."""

_BLOCK_NUMBERS = 1 << 16


def split_borders(rule: str, rows: int, lookback: int) -> Borders:
    """Rows [start, stop) of each split.

    Validation and test begin ``lookback`` rows early, so that their first target is their first own row; ``pems``
    does not overlap.

    Args:
        rule: one of ``SPLITS``. ``ett_*``: 12, 4 and 4 months of 30 days; ``ratio_7_1_2``: int(0.7 T) rows to train on,
            int(0.2 T) for test, the rest between; ``ratio_6_2_2``: the same with 0.6; ``solar``: as 7_1_2 with
            int(0.1 T) for validation; ``pems``: borders at int(0.6 T) and int((0.6 + 0.2) T).

    Raises:
        InputError: unknown rule, or fewer rows than its fixed borders need.
    """
    if rule not in SPLITS:
        raise InputError(f"unknown split {rule!r}", nearest(rule, SPLITS) or f"Choose one of {', '.join(SPLITS)}")
    if rule == "pems":
        train, val = int(0.6 * rows), int((0.6 + 0.2) * rows)
        return {"train": (0, train), "val": (train, val), "test": (val, rows)}
    if rule.startswith("ett"):
        month = 30 * 24 * (4 if rule == "ett_minute" else 1)
        train, val_stop, test, stop = 12 * month, 16 * month, 16 * month, 20 * month
        if rows < stop:
            raise InputError(f"the split {rule} needs {stop} rows, there are {rows}", "Set data.split=ratio_7_1_2")
    else:
        train = int((0.6 if rule == "ratio_6_2_2" else 0.7) * rows)
        test, stop = rows - int(0.2 * rows), rows
        val_stop = train + int(0.1 * rows) if rule == "solar" else test
    return {"train": (0, train), "val": (train - lookback, val_stop), "test": (test - lookback, stop)}


def num_windows(rows: int, lookback: int, horizon: int) -> int:
    """Windows of stride 1 in a stretch of rows; not positive where none fits."""
    return rows - lookback - horizon + 1


def _check_windows(name: str, rule: str, rows: int, lookback: int, horizon: int) -> Borders:
    """The borders, if every split has a window."""

    def fit(rows: int) -> bool:
        borders = split_borders(rule, rows, lookback).values()
        return all(num_windows(stop - start, lookback, horizon) > 0 for start, stop in borders)

    borders = split_borders(rule, rows, lookback)
    if fit(rows):
        return borders
    split, (start, stop) = min(borders.items(), key=lambda item: item[1][1] - item[1][0])
    room = stop - start - lookback
    hint = f"A horizon of at most {room} fits" if room > 0 else "Use a shorter look-back"
    limit = rows + 20 * (lookback + horizon) + 40
    if fit(limit):  # more rows do not help where the borders are fixed
        hint += f", or give at least {bisect.bisect_left(range(limit), True, lo=rows, key=fit)} rows"
    raise InputError(
        f"{name}: {rows} rows are too few for lookback={lookback} and horizon={horizon}: "
        f"the {split} split has {stop - max(start, 0)} rows and a window takes {lookback + horizon}",
        hint,
    )


@dataclass(frozen=True)
class ForecastData:
    """A standardised table and the windows of its splits.

    Attributes:
        name: of the set or file.
        values: float32 [T, D], standardised.
        marks: calendar features float32 [T, F], or None.
        mean: float64 [D], of the training rows.
        std: float64 [D], biased; 1 for a constant column.
        columns: names of the D columns.
        stamps: T time stamps, or None.
        freq: step between rows as a pandas alias, or None.
        splits: rows [start, stop) by split.
        lookback: L.
        horizon: H.
        target: position of the only scored column, None if all are scored.
        season: rows in the natural season.
    """

    name: str
    values: Tensor
    marks: Tensor | None
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    columns: tuple[str, ...]
    stamps: pd.DatetimeIndex | None
    freq: str | None
    splits: Borders
    lookback: int
    horizon: int
    target: int | None
    season: int

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the scored columns."""
        return self.columns if self.target is None else (self.columns[self.target],)

    def num_windows(self, split: str) -> int:
        start, stop = self.splits[split]
        return num_windows(stop - start, self.lookback, self.horizon)

    def batch(self, split: str, indices: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gather windows.

        Args:
            indices: which windows of the split, int64 [B].

        Returns:
            inputs [B, L, D], targets [B, H, D] (or [B, H, 1]: the scored column), and the marks of both [B, L + H, F].
        """
        first = self.splits[split][0] + indices
        window = _windows(self.values, self.lookback + self.horizon)[first]
        x, y = window[:, : self.lookback], window[:, self.lookback :]
        if self.target is not None:
            y = y[..., self.target : self.target + 1]
        marks = None if self.marks is None else _windows(self.marks, self.lookback + self.horizon)[first]
        return x, y, marks

    def inverse(self, y: Tensor | NDArray[Any]) -> NDArray[np.float64]:
        """Standardised outputs [..., D] (or [..., 1]: the scored column) in their own units."""
        scored = slice(None) if self.target is None else slice(self.target, self.target + 1)
        return inverse(y, self.mean[scored], self.std[scored])

    def to(self, device: torch.device | str) -> ForecastData:
        """The same data with its tensors on another device."""
        marks = None if self.marks is None else self.marks.to(device)
        return replace(self, values=self.values.to(device), marks=marks)


def _windows(rows: Tensor, length: int) -> Tensor:
    """All windows of contiguous rows [T, D] as a view [T - length + 1, length, D]."""
    num, width = rows.shape
    return rows.as_strided((num - length + 1, length, width), (width, width, 1))


def inverse(y: Tensor | NDArray[Any], mean: NDArray[np.float64], std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standardised values [..., D] in their own units, float64."""
    array = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
    return np.asarray(array, np.float64) * std + mean


def standardise(table: Table, train_rows: int) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Standardise a table; one of float32 in its own memory, so that it must not be used afterwards.

    Missing values are left out of the statistics and stay missing.

    Returns:
        float32 [T, D], and the mean and biased standard deviation of the first ``train_rows`` rows, float64 [D]; a zero
        deviation counts as 1.
    """
    step = max(1, _BLOCK_NUMBERS // len(table.columns))
    train = [table.values[start : min(start + step, train_rows)] for start in range(0, train_rows, step)]
    count = np.maximum(sum((~np.isnan(block)).sum(0) for block in train), 1)
    mean = sum(np.nansum(block, axis=0, dtype=np.float64) for block in train) / count
    variance = sum(np.nansum((block - mean) ** 2, axis=0) for block in train) / count
    std = np.sqrt(variance)
    std[std == 0] = 1.0
    out = table.values if table.values.dtype == np.float32 else np.empty(table.values.shape, np.float32)
    for start in range(0, table.rows, step):
        rows = slice(start, start + step)
        out[rows] = (table.values[rows] - mean) / std
    return out, table.offset + mean, std


def _fill_within(values: NDArray[np.float32], borders: Borders) -> None:
    """Fill missing values forward, then backward, inside each split, in place."""
    for start, stop in borders.values():
        part = values[start:stop]
        for column in np.flatnonzero([np.isnan(part[:, d]).any() for d in range(part.shape[1])]):
            part[:, column] = pd.Series(part[:, column]).ffill().bfill()


def read_source(
    source: Any, *, path: str | Path | None = None, download: bool = False, **options: Any
) -> tuple[Table, cards.TableCard | None]:
    """Read a named data set by its own rules, or any other table by the general ones.

    Args:
        source: name of a data set, or path of a table, or a data frame.
        path: replaces the file of a named set and nothing else.
        download: whether a named set may be fetched.
        options: as for ``toolkit.data.tables.read_table``; those that are None or 0 are left to the reader.

    Returns:
        the table, and the card of a named set.
    """
    if isinstance(options.get("columns"), str):
        options["columns"] = [options["columns"]]
    options = {key: value for key, value in options.items() if value is not None and value != 0}
    if not isinstance(source, str) or source not in registry.datasets:
        if isinstance(source, str) and "." not in source and not Path(source).exists():
            hint = nearest(source, registry.datasets.names()) or "`toolkit list datasets` shows all sets"
            raise InputError(f"{source!r} is neither a data set nor a file", hint)
        return read_table(source if path is None else path, **options), None
    card = cards.card(source)
    if not isinstance(card, cards.TableCard):
        raise InputError(f"{card.name} is no table", f"It is a data set of {' and '.join(card.tasks)}")
    return cards.reader(card.name).read(card.name, find(card, path=path, download=download), **options), card


def load_data(
    source: Any,
    *,
    lookback: int,
    horizon: int,
    split: str | None = None,
    cutoff: int | None = None,
    mode: Mode | None = None,
    target: str | None = None,
    columns: Sequence[str] | None = None,
    time: str | None = None,
    freq: str | None = None,
    fill: int = 0,
    marks: bool | str = False,
    path: str | Path | None = None,
    download: bool = False,
) -> ForecastData:
    """Read, split and standardise a table.

    Args:
        source: name of a data set, or path of the user's own table, or a data frame.
        lookback: L.
        horizon: H.
        split: one of ``SPLITS``; None takes the set's own, ``ratio_7_1_2`` for the user's own table.
        cutoff: instead of a split, the number of rows before the only tested window (``cutoff_borders``).
        mode: ``M`` scores all columns, ``MS`` the target alone, ``S`` drops all but the target; None means ``MS`` if a
            target is named, else ``M``.
        target: the scored column; ``OT`` (or the last) of a named set if a mode needs one and none is named.
        columns: columns to use.
        time: time column of an own table.
        freq: expected step of an own table.
        fill: longest gap of missing rows to interpolate.
        marks: whether to make calendar features; a key of ``CALENDAR`` fixes their kind, else the step does.
        path: replaces the file of a named set and nothing else.
        download: whether a named set may be fetched.

    Raises:
        InputError: a bad table, option or combination of them.
        DataNotFoundError: a named set is not here.
    """
    table, card = read_source(source, path=path, download=download, columns=columns, time=time, freq=freq, fill=fill)
    mode = mode or ("MS" if target else "M")
    if mode not in ("M", "S", "MS"):
        raise InputError(f"unknown mode {mode!r}", "Choose M, S or MS")
    position = None
    if mode != "M":
        if target is None and card is None:
            raise InputError(f"mode {mode} scores one column of {table.name}", "Name it with data.target=NAME")
        target = target or ("OT" if "OT" in table.columns else table.columns[-1])
        position = table.index(target, "target column")
        if mode == "S":
            table, position = table.select([target]), 0
    if cutoff is None:
        rule = split or (card.split if card else "ratio_7_1_2")
        borders = _check_windows(table.name, rule, table.rows, lookback, horizon)
    else:
        borders = cutoff_borders(table.name, cutoff, table.rows, lookback, horizon)
    values, mean, std = standardise(table, borders["train"][1])
    _fill_within(values, borders)
    return ForecastData(
        name=card.name if card and path is None else table.name,
        values=torch.from_numpy(values),
        marks=_marks(table.stamps, table.freq, marks),
        mean=mean,
        std=std,
        columns=table.columns,
        stamps=table.stamps,
        freq=table.freq,
        splits=borders,
        lookback=lookback,
        horizon=horizon,
        target=position,
        season=card.season if card else season_of(table.freq),
    )


def season_of(freq: str | None) -> int:
    """Rows in the natural season of a step: a day for steps below it, a week of days, a year above; 1 if unknown."""
    if freq is None:
        return 1
    step = pd.date_range("2001-01-01", periods=2, freq=freq)
    per_day = round(pd.Timedelta(days=1) / (step[1] - step[0]))
    if per_day > 1:
        return per_day
    return {"d": 7, "b": 5, "w": 52}.get(calendar_kind(freq), 12)


def _marks(stamps: pd.DatetimeIndex | None, freq: str | None, wanted: bool | str) -> Tensor | None:
    if not wanted or stamps is None:
        return None
    if isinstance(wanted, str) and wanted not in CALENDAR:
        raise InputError(f"unknown kind of calendar features {wanted!r}", f"Choose one of {', '.join(CALENDAR)}")
    if wanted is True and freq is None:
        return None
    return torch.from_numpy(
        calendar_features(stamps, wanted if isinstance(wanted, str) else calendar_kind(freq or "h"))
    )


@dataclass(frozen=True)
class FutureInput:
    """What a trained model needs to forecast the rows after a table.

    Attributes:
        x: the last L rows, standardised, float32 [1, L, D].
        marks: calendar features of the L input and the H future rows [1, L + H, F], or None.
        stamps: of the H future rows; row numbers where the table has no stamps.
    """

    x: Tensor
    marks: Tensor | None
    stamps: pd.Index


def future_input(
    table: Table,
    *,
    columns: Sequence[str],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    lookback: int,
    horizon: int,
    marks: bool | str = False,
) -> FutureInput:
    """Prepare the forecast of the ``horizon`` rows after a freshly read table.

    Args:
        columns: the trained columns, found by name; others of the table are ignored.
        mean: of the training rows, float64 [D].
        std: of the training rows, float64 [D].
        marks: as in ``load_data``.

    Raises:
        InputError: missing columns, or fewer than ``lookback`` rows.
    """
    table = table.select(columns)
    if table.rows < lookback:
        raise InputError(f"{table.name} has {table.rows} rows, the model looks back {lookback}")
    x = torch.from_numpy(((table.original(table.rows - lookback) - mean) / std).astype(np.float32))
    future = future_stamps(table.stamps, table.freq, horizon, table.rows)
    calendar = None
    if table.stamps is not None and isinstance(future, pd.DatetimeIndex):
        calendar = _marks(table.stamps[-lookback:].append(future), table.freq, marks)
    return FutureInput(x[None], None if calendar is None else calendar[None], future)
