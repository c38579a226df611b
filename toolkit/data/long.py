"""Long tables, one row per series and time: ``unique_id, ds, y``, as statsforecast and neuralforecast take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from toolkit.data.sources import FrameSource, Source
from toolkit.data.stamps import StampParser
from toolkit.errors import InputError

ID, TIME, VALUE = "unique_id", "ds", "y"


class LongSource(FrameSource):
    """A long table read whole and turned into one column per series, in order of first appearance.

    The rows may come in any order. A time that a series lacks between its first and its last is a missing value;
    all series must begin and end together.

    Args:
        source: a table with the columns ``unique_id``, ``ds`` and ``y`` and no others.

    Raises:
        InputError: another column, a row without series or time, a repeated row, a value that is no number, or series
            of different spans; one line names the table and the row or series.
    """

    def __init__(self, source: Source):
        _check_columns(source)
        ids, stamps, values = _read(source)
        codes, names = pd.factorize(ids)
        rows, times = pd.factorize(stamps, sort=True)
        _check_once(source, codes, rows, names, times)
        _check_spans(source.name, codes, rows, names, times)
        wide = np.full((len(times), len(names)), np.nan)
        wide[rows, codes] = values
        super().__init__(pd.DataFrame(wide, pd.DatetimeIndex(times, name=TIME), list(names)))
        self.name = source.name

    def place(self, row: int) -> str:
        return f"time step {row + 1}"


def widen(source: Source) -> Source:
    """A long table, recognised by its column ``unique_id``, as a wide one; any other table as it is."""
    return LongSource(source) if ID in source.columns else source


def _check_columns(source: Source) -> None:
    wanted = (ID, TIME, VALUE)
    if absent := [column for column in wanted if column not in source.columns]:
        raise InputError(
            f"{source.name} has a column {ID!r} but no {absent[0]!r}",
            f"A long table has the columns {', '.join(wanted)}",
        )
    if others := [column for column in source.columns if column not in wanted and column not in source.unnamed]:
        raise InputError(
            f"{source.name} is a long table with a further column {others[0]!r}",
            f"Only {VALUE!r} is forecast: leave the column out, or give a table with one column per variate",
        )


def _read(source: Source) -> tuple[np.ndarray, pd.DatetimeIndex, np.ndarray]:
    """Series, times and values of all rows as they come."""
    id_at, time_at, value_at = (source.columns.index(column) for column in (ID, TIME, VALUE))
    parser = StampParser(f"{source.name}: column {TIME!r}", source.place)
    ids: list[np.ndarray] = []
    values: list[np.ndarray] = []
    start = 0
    for block in source.blocks([id_at, value_at], time_at):
        if not len(block):
            continue  # of a file that has only a header
        if (missing := block[id_at].isna().to_numpy()).any():
            raise InputError(f"{source.name}: {source.place(start + int(missing.argmax()))} has no {ID}")
        ids.append(np.array([str(name) for name in block[id_at]], object))
        parser.add(block[time_at])
        values.append(_numbers(block[value_at], start, source))
        start += len(block)
    if not start:
        raise InputError(f"{source.name} has no rows", "A forecast needs many")
    return np.concatenate(ids), parser.finish(), np.concatenate(values)


def _numbers(held: pd.Series, start: int, source: Source) -> np.ndarray:
    parsed = pd.to_numeric(held, errors="coerce")
    if (wrong := (parsed.isna() & held.notna()).to_numpy()).any():
        row = int(wrong.argmax())
        raise InputError(
            f"{source.name}: column {VALUE!r}, {source.place(start + row)}: {str(held.iloc[row])!r} is not a number",
            "Correct the value, or leave it empty and fill it with fill=N",
        )
    return parsed.to_numpy(np.float64, na_value=np.nan)


def _check_once(source: Source, codes: Any, rows: Any, names: Any, times: Any) -> None:
    repeated = pd.Series(codes.astype(np.int64) * len(times) + rows).duplicated().to_numpy()
    if repeated.any():
        row = int(repeated.argmax())
        raise InputError(
            f"{source.name}: {source.place(row)} repeats {ID} {names[codes[row]]!r} at {times[rows[row]]}",
            "Keep one row per series and time",
        )


def _check_spans(name: str, codes: Any, rows: Any, names: Any, times: Any) -> None:
    spans = pd.Series(rows).groupby(codes).agg(["min", "max"])
    first, last = spans["min"].max(), spans["max"].min()
    uneven = spans.index[(spans["min"] != first) | (spans["max"] != last)]
    if not len(uneven):
        return
    code = (spans["max"] - spans["min"]).idxmin()
    begin, end = (times[spans.loc[code, edge]] for edge in ("min", "max"))
    raise InputError(
        f"{name}: the series do not cover the same times: {names[code]!r} spans {begin} to {end}, "
        f"the table {times[0]} to {times[-1]}",
        f"Keep the rows from {times[first]} to {times[last]}, which all series cover"
        if first < last
        else "Leave out series that do not overlap",
    )
