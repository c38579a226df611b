"""Tables of numbers over time: read from a file or a data frame, checked, and kept in half the memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from toolkit.data.long import LongSource, widen
from toolkit.data.sources import Source, open_source
from toolkit.data.stamps import StampParser, check_regular, infer_step, looks_like_stamps
from toolkit.errors import InputError, nearest

TIME_NAMES = ("date", "time", "timestamp", "datetime", "ds")
"""Names, in any case, that make a column the time column."""

_FLOAT64_NUMBERS = 1 << 21  # 16 MB


@dataclass(frozen=True)
class Table:
    """T rows of D numbers at a fixed step.

    A value is ``offset + values``: the first value of a column is taken off before rounding to float32, which keeps the
    digits of columns that vary little around a large level. Small tables are not rounded at all.

    Attributes:
        name: file name, for messages.
        columns: names of the D columns.
        values: [T, D], relative to ``offset``: float64 up to 2 million numbers, float32 above.
        offset: float64 [D].
        stamps: T time stamps, or None where rows are only numbered.
        freq: step between rows as a pandas alias.
        long: whether it was read from a long table (``toolkit.data.long``); a column is then a series.
    """

    name: str
    columns: tuple[str, ...]
    values: NDArray[np.floating[Any]]
    offset: NDArray[np.float64]
    stamps: pd.DatetimeIndex | None = None
    freq: str | None = None
    long: bool = False

    @classmethod
    def from_array(cls, name: str, columns: Sequence[str], array: NDArray[Any], **fields: Any) -> Table:
        """A table of an array [T, D] that is already in memory."""
        pack = _Packer(values := _empty(*array.shape))
        pack.add(array)
        return cls(name, tuple(columns), values, pack.offset, **fields)

    @property
    def rows(self) -> int:
        return len(self.values)

    def original(self, start: int = 0, stop: int | None = None) -> NDArray[np.float64]:
        """The values of some rows in their own units, float64 [rows, D]."""
        return self.values[start:stop] + self.offset

    def summary(self) -> dict[str, Any]:
        """What the table holds, for people and JSON."""
        stamps = None if self.stamps is None else [str(self.stamps[0]), str(self.stamps[-1])]
        return {"rows": self.rows, "columns": list(self.columns), "step": self.freq, "stamps": stamps}

    def index(self, column: str, role: str = "column") -> int:
        """Position of a column.

        Raises:
            InputError: there is none of that name.
        """
        if column not in self.columns:
            raise InputError(f"{self.name} has no {role} {column!r}", _offer([column], self.columns))
        return self.columns.index(column)

    def select(self, columns: Sequence[str]) -> Table:
        """The named columns in the named order; this table itself if that is what it holds.

        Raises:
            InputError: names of columns that are not there.
        """
        _check_known(columns, self.columns, self.name)
        if tuple(columns) == self.columns:
            return self
        picked = [self.columns.index(column) for column in columns]
        return replace(self, columns=tuple(columns), values=self.values[:, picked], offset=self.offset[picked])


class _Packer:
    """Writes blocks of float64 rows into ``out`` [rows, D], relative to each column's first finite value."""

    def __init__(self, out: NDArray[np.floating[Any]]):
        self._out, self.rows = out, 0
        self._offset = np.full(out.shape[1], np.nan)

    def add(self, block: NDArray[Any]) -> None:
        unset = np.flatnonzero(np.isnan(self._offset))
        if unset.size:
            finite = np.isfinite(block[:, unset])
            first = finite.argmax(axis=0)
            found = finite[first, np.arange(unset.size)]
            self._offset[unset[found]] = block[first[found], unset[found]]
        stop = self.rows + len(block)
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(block, self.offset, out=self._out[self.rows : stop], casting="same_kind")
        self.rows = stop

    @property
    def offset(self) -> NDArray[np.float64]:
        return np.nan_to_num(self._offset)  # a column that has no value yet is missing so far


def _empty(rows: int, columns: int) -> NDArray[np.floating[Any]]:
    """Room for a table; the system backs only the pages that are written."""
    return np.empty((rows, columns), np.float64 if rows * columns <= _FLOAT64_NUMBERS else np.float32)


def _offer(wanted: Sequence[str], known: Sequence[str]) -> str:
    if hint := nearest(wanted[0], known):
        return hint
    shown = ", ".join(map(repr, known[:8]))
    return f"It has {shown}{f' and {len(known) - 8} more' if len(known) > 8 else ''}"


def _check_known(wanted: Sequence[str], known: Sequence[str], name: str) -> None:
    if absent := [column for column in wanted if column not in known]:
        plural = "s" if len(absent) > 1 else ""
        raise InputError(f"{name} has no column{plural} {', '.join(map(repr, absent))}", _offer(absent, known))


def _find_time(source: Source, time: str | None) -> str | None:
    """The time column: the named one, else one of a usual name, else the first that holds dates; "" means none."""
    if time is not None:
        if time:
            _check_known([time], source.columns, source.name)
        return time or None
    for column in source.columns:
        if column.lower() in TIME_NAMES:
            return column
    sample = source.sample()
    return next((source.columns[i] for i in sample if looks_like_stamps(sample[i])), None)


def _find_columns(source: Source, columns: Sequence[str] | None, time: str | None, last: str | None) -> list[str]:
    if columns is not None:
        _check_known(columns, source.columns, source.name)
        if repeated := [column for column in columns if list(columns).count(column) > 1]:
            raise InputError(f"data.columns names {repeated[0]!r} twice")
        if time in columns:
            raise InputError(f"{source.name}: {time!r} is the time column, it cannot be in data.columns too")
        chosen = list(columns)
    else:
        chosen = [column for column in source.columns if column != time and column not in source.unnamed]
    if not chosen:
        raise InputError(f"{source.name} has no column of numbers")
    if last in chosen:
        chosen.append(chosen.pop(chosen.index(last)))
    return chosen


def _to_float(block: pd.DataFrame, positions: list[int], start: int, source: Source) -> NDArray[np.float64]:
    """The columns at these positions as float64 [rows, D], missing ones as NaN; ``start`` numbers the first row."""
    block = block[positions]
    if all(isinstance(dtype, np.dtype) and dtype.kind in "fiu" for dtype in block.dtypes):
        return block.to_numpy(np.float64)
    numbers = np.empty((len(block), len(positions)))
    for place, position in enumerate(positions):
        held = block[position]
        if not pd.api.types.is_numeric_dtype(held.dtype):
            held = _parse_numbers(held, start, source, source.columns[position])
        numbers[:, place] = held.to_numpy(np.float64, na_value=np.nan)
    return numbers


def _parse_numbers(held: pd.Series, start: int, source: Source, column: str) -> pd.Series:
    """Numbers that are stored as text."""
    if pd.api.types.is_datetime64_any_dtype(held.dtype):
        parsed = pd.Series(np.nan, held.index)
    else:
        parsed = pd.to_numeric(held, errors="coerce")
    wrong = (parsed.isna() & held.notna()).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{source.name}: column {column!r}, {source.place(start + row)}: {str(held.iloc[row])!r} is not a number",
            "Choose the columns of numbers with data.columns=[NAME, ...]"
            if parsed.isna().all()
            else "Correct the value, or leave it empty and fill it with fill=N",
        )
    return parsed


def _collect(
    source: Source, columns: list[str], time: str | None, parser: StampParser, sentinels: Collection[float]
) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64]]:
    """Read everything: the values [T, D], relative to their offsets, and these; the stamps go to the parser."""
    positions = [source.columns.index(column) for column in columns]
    time_at = None if time is None else source.columns.index(time)
    values = _empty(source.rows, len(columns))
    offsets, rows = [], 0
    width = source.columns_at_once or len(columns)
    for left in range(0, len(columns), width):
        group = positions[left : left + width]
        pack = _Packer(values[:, left : left + width])
        for block in source.blocks(group, time_at if left == 0 else None):
            if not len(block):
                continue  # of a file that has only a header
            numbers = _to_float(block, group, pack.rows, source)
            for sentinel in sentinels:
                numbers[numbers == sentinel] = np.nan
            pack.add(numbers)
            if time_at in block:
                parser.add(block[time_at])
        offsets.append(pack.offset)
        rows = pack.rows
    return values[:rows], np.concatenate(offsets)


def fill_gaps(table: Table, limit: int, place: Any = lambda row: f"row {row + 1}") -> None:
    """Interpolate gaps of missing or infinite values linearly, in place.

    Args:
        limit: longest gap, in rows, that may be filled.
        place: row number to words.

    Raises:
        InputError: a gap is longer or touches an end; names the column, its first stamp and its length.
    """
    for position, column in enumerate(table.columns):
        held = table.values[:, position]
        finite = np.isfinite(held)
        if finite.all():
            continue
        edges = np.flatnonzero(np.diff(np.concatenate(([True], finite, [True]))))
        for start, stop in edges.reshape(-1, 2).tolist():
            inner = start > 0 and stop < table.rows
            if inner and stop - start <= limit:
                continue
            when = place(start) if table.stamps is None else f"{table.stamps[start]}, {place(start)}"
            count = f"{stop - start} missing or infinite value{'s' if stop - start > 1 else ''}"
            raise InputError(
                f"{table.name}: column {column!r} has {count} from {when} on (fill={limit})",
                f"Set fill={stop - start} to interpolate such gaps"
                if inner
                else "A gap at an end cannot be interpolated: remove these rows or leave out the column",
            )
        rows = np.arange(table.rows)
        held[~finite] = np.interp(rows[~finite], rows[finite], held[finite].astype(np.float64))


def read_table(
    source: Any,
    *,
    time: str | None = None,
    columns: Sequence[str] | None = None,
    freq: str | None = None,
    fill: int = 0,
    strict: bool = True,
    header: bool = True,
    last: str | None = None,
    sentinels: Collection[float] = (),
) -> Table:
    """Read a table block by block; the whole never stands in memory in another form.

    Without ``time``, the time column is the first one called ``date``, ``time``, ``timestamp``, ``datetime`` or ``ds``
    (in any case), else the first that holds dates. A table may have none: its rows are then only numbered. A column
    without a name is a row index, not a variable; it may hold the time. A table with the columns ``unique_id``, ``ds``
    and ``y`` is a long one and becomes one column per series (``toolkit.data.long``).

    Args:
        source: path of a CSV (``.gz`` too) or Parquet file, or a data frame (pandas, or anything with ``to_pandas``).
        time: the time column; the empty string says that there is none.
        columns: columns to keep, in this order; None keeps all but the time column, and all must hold numbers.
        freq: the step that the stamps must have; None infers it.
        fill: longest gap, in rows, that is interpolated linearly.
        strict: stamps must ascend by one constant step; else they are kept as they are and ``freq`` stands in where
            no step can be inferred.
        header: of a CSV: whether the first line names the columns.
        last: a column that is moved to the end if it is there.
        sentinels: numbers that stand for a missing value.

    Raises:
        InputError: anything that keeps the table from being read; one line names file, column and row.
    """
    opened = widen(open_source(source, header))
    time = _find_time(opened, time)
    chosen = _find_columns(opened, columns, time, last)
    label = f"{opened.name}: column {time!r}"
    parser = StampParser(label, opened.place)
    values, offset = _collect(opened, chosen, time, parser, sentinels)
    count = len(values)
    if count < 2:
        raise InputError(f"{opened.name} has {count or 'no'} row{'s' if count != 1 else ''}", "A forecast needs many")
    stamps = None
    if time is not None:
        stamps = parser.finish()
        freq = check_regular(stamps, freq, label, opened.place) if strict else infer_step(stamps) or freq
    elif freq is not None and strict:
        raise InputError(f"{opened.name} has no time column, so no step {freq!r}", "Name it with data.time=NAME")
    table = Table(opened.name, tuple(chosen), values, offset, stamps, freq, isinstance(opened, LongSource))
    fill_gaps(table, fill, opened.place)
    return table


def refuse_options(name: str, options: dict[str, Any], allowed: Sequence[str]) -> None:
    """Reject options that the fixed form of a named set leaves no room for.

    Raises:
        InputError: names the first one.
    """
    for key in options:
        if key not in allowed:
            raise InputError(f"{name}: {key!r} cannot be set, the form of its file is fixed")
