"""Time stamps of a table: read, check, extend, and describe as calendar features."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.api import guess_datetime_format
from pandas.tseries.frequencies import to_offset

from toolkit.errors import InputError

Place = Callable[[int], str]
"""Turns a row number that counts from 0 into words, for messages: ``row 3 (line 4)``."""

CALENDAR: dict[str, tuple[str, ...]] = {
    "h": ("hour", "day_of_week", "day", "day_of_year"),
    "t": ("minute", "hour", "day_of_week", "day", "day_of_year"),
    "s": ("second", "minute", "hour", "day_of_week", "day", "day_of_year"),
    "d": ("day_of_week", "day", "day_of_year"),
    "b": ("day_of_week", "day", "day_of_year"),
    "w": ("day", "week"),
    "m": ("month",),
}
"""Calendar features of each kind of step."""

_KINDS = {
    "h": pd.offsets.Hour,
    "t": pd.offsets.Minute,
    "s": (pd.offsets.Second, pd.offsets.Milli, pd.offsets.Micro, pd.offsets.Nano),
    "d": pd.offsets.Day,
    "b": pd.offsets.BusinessDay,
    "w": pd.offsets.Week,
}
_FEATURE_SPAN = {  # first value and span, so that (value - first) / span - 0.5 lies in [-0.5, 0.5]
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day_of_week": (0, 6),
    "day": (1, 30),
    "day_of_year": (1, 365),
    "month": (1, 11),
    "week": (1, 52),
}


def _candidate_formats(sample: str) -> list[str]:
    """Formats that a column that begins with ``sample`` may have: ISO 8601, else month first or day first."""
    if not pd.isna(pd.to_datetime(sample, format="ISO8601", errors="coerce")):
        return ["ISO8601"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "... when dayfirst=False was specified": both are tried
        guesses = [guess_datetime_format(sample, dayfirst=day_first) for day_first in (False, True)]
    return list(dict.fromkeys(filter(None, guesses)))


class StampParser:
    """Turns a time column, block by block, into stamps.

    One format holds for the whole column (ISO 8601 may leave out the time of day); where day and month could be either,
    it is the order that fits every row, month first if both do. Stamps with an offset from UTC become UTC.

    Args:
        label: file and column, for messages.
        place: row number to words.
    """

    def __init__(self, label: str, place: Place):
        self._label, self._place, self._count = label, place, 0
        self._parts: dict[str, list[pd.DatetimeIndex]] = {}
        self._utc = False

    def add(self, values: pd.Series) -> None:
        """The next rows: text, numbers such as 20160701, or dates.

        Raises:
            InputError: a value is missing or is no date; names the row and the value.
        """
        missing = values.isna().to_numpy()
        if missing.any():
            row = self._place(self._count + int(missing.argmax()))
            raise InputError(f"{self._label}: {row} has no time stamp", "Fill it in or remove the row")
        if pd.api.types.is_datetime64_any_dtype(values.dtype):
            self._parts.setdefault("dates", []).append(pd.DatetimeIndex(values))
        else:
            self._add_text(np.array([str(value) for value in values], object))
        self._count += len(values)

    def _add_text(self, text: NDArray[np.object_]) -> None:
        if not self._parts:
            self._parts = {form: [] for form in _candidate_formats(text[0])}
            self._utc = any(pd.to_datetime(text[0], format=form).tzinfo is not None for form in self._parts)
        failed_at = []
        for form in list(self._parts):
            try:
                parsed = pd.to_datetime(text, format=form, errors="coerce", utc=self._utc)
            except ValueError as error:
                raise InputError(f"{self._label}: some stamps have an offset from UTC, others none") from error
            failed = np.asarray(parsed.isna())
            if failed.any():
                del self._parts[form]
                failed_at.append(int(failed.argmax()))
            else:
                self._parts[form].append(parsed)
        if not self._parts:
            row = max(failed_at, default=0)  # of the format that got farthest
            like = " in the form of the rows before it" if self._count + row else ""
            raise InputError(
                f"{self._label}: {self._place(self._count + row)}: {text[row]!r} is not a date{like}",
                "Write stamps as 2016-07-01 13:00:00, or name the time column with data.time=NAME",
            )

    def finish(self) -> pd.DatetimeIndex:
        """The stamps of all rows."""
        first, *others = next(iter(self._parts.values()))
        stamps = first.append(others)
        return stamps if stamps.tz is None else stamps.tz_convert("UTC")


def looks_like_stamps(sample: pd.Series) -> bool:
    """Whether the first values of a column are dates written as such; plain numbers are not."""
    if pd.api.types.is_datetime64_any_dtype(sample.dtype):
        return True
    sample = sample.dropna()
    if sample.empty or pd.api.types.is_numeric_dtype(sample.dtype):
        return False
    if pd.to_numeric(sample, errors="coerce").notna().any():
        return False
    try:
        StampParser("", str).add(sample)
    except InputError:
        return False
    return True


def _offset(freq: str, label: str) -> pd.DateOffset:
    try:
        return to_offset(freq)
    except ValueError as error:
        raise InputError(f"{label}: {freq!r} is not a step", "Use one such as h, 15min, D, W or MS") from error


def infer_step(stamps: pd.DatetimeIndex) -> str | None:
    """The step of regular stamps as a pandas alias (``h``, ``15min``, ``MS``), or None."""
    if len(stamps) > 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a pandas that will return the offset itself
            inferred = pd.infer_freq(stamps)
        return getattr(inferred, "freqstr", inferred)
    step = stamps[-1] - stamps[0]
    return to_offset(step).freqstr if step > pd.Timedelta(0) else None


def check_regular(stamps: pd.DatetimeIndex, freq: str | None, label: str, place: Place) -> str:
    """The step of the stamps, which must ascend and be regular.

    Args:
        freq: the expected step; None accepts any, months and business days included.
        label: file and column, for messages.
        place: row number to words.

    Raises:
        InputError: the first stamp that is out of order, repeated or off the step.
    """
    steps = np.diff(stamps.tz_localize(None).to_numpy())
    zero = np.timedelta64(0)
    if (bad := steps <= zero).any():
        row = int(bad.argmax()) + 1
        if steps[row - 1] == zero:
            raise InputError(f"{label}: {place(row)} repeats the stamp {stamps[row]}", "Keep one row per stamp")
        raise InputError(f"{label}: {place(row)}: {stamps[row]} comes after {stamps[row - 1]}", "Sort the rows by time")
    if freq is None:
        if inferred := infer_step(stamps):
            return inferred
        known, counts = np.unique(steps, return_counts=True)
        usual = known[counts.argmax()]
        row = int((steps != usual).argmax()) + 1
        expected = stamps[row - 1] + pd.Timedelta(usual)
        step = to_offset(pd.Timedelta(usual)).freqstr
    else:
        grid = pd.date_range(stamps[0], periods=len(stamps), freq=_offset(freq, label))
        differs = grid != stamps
        if not differs.any():
            return freq
        row = int(differs.argmax())
        expected, step = grid[row], freq
    raise InputError(
        f"{label}: {place(row)}: expected {expected} by the step of {step}, found {stamps[row]}",
        "Give the table one constant step (data.freq=B or MS names one of unequal days); rows that are absent may be "
        "added with empty values and filled with fill=N"
        if freq is None
        else "Correct data.freq or the rows",
    )


def future_stamps(stamps: pd.DatetimeIndex | None, freq: str | None, horizon: int, rows: int) -> pd.Index:
    """Stamps of the ``horizon`` rows after a table of ``rows`` rows; row numbers from 0 where it has none."""
    if stamps is None or freq is None:
        return pd.RangeIndex(rows, rows + horizon, name="row")
    after = pd.date_range(stamps[-1], periods=horizon + 1, freq=freq)
    return after[after > stamps[-1]][:horizon]  # an anchored step may begin later than the last stamp


def calendar_kind(freq: str) -> str:
    """The key of ``CALENDAR`` for a pandas step; months, quarters and years count as months."""
    offset = to_offset(freq)
    return next((kind for kind, types in _KINDS.items() if isinstance(offset, types)), "m")


def calendar_features(stamps: pd.DatetimeIndex, kind: str) -> NDArray[np.float32]:
    """Calendar features [T, F], each in [-0.5, 0.5].

    Args:
        kind: a key of ``CALENDAR``, which lists the features in order.
    """
    features = np.empty((len(stamps), len(CALENDAR[kind])), np.float32)
    for place, feature in enumerate(CALENDAR[kind]):
        values = stamps.isocalendar().week.to_numpy() if feature == "week" else getattr(stamps, feature).to_numpy()
        first, span = _FEATURE_SPAN[feature]
        features[:, place] = (values.astype(np.float64) - first) / span - 0.5
    return features
