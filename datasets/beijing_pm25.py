"""Beijing PM2.5: fine dust and weather, hourly, 2010 to 2014; comes with the toolkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from toolkit.data.sources import open_binary
from toolkit.data.tables import Table, refuse_options
from toolkit.errors import InputError

CARDS: dict[str, dict[str, Any]] = {
    "beijing_pm25": {
        "title": "PM2.5 and weather in Beijing, hourly",
        "licence": "CC BY 4.0",
        "homepage": "https://archive.ics.uci.edu/dataset/381/beijing+pm2+5+data",
        "citation": (
            "Liang et al., Assessing Beijing's PM2.5 pollution: severity, weather impact, APEC and winter"
            " heating, Proc. R. Soc. A 471 (2015)"
        ),
        "notes": (
            (
                "CC BY 4.0, UCI Machine Learning Repository: the licence that UCI states for its collection; "
                "the set's own licence page was not read again"
            ),
            (
                "Columns: pm2.5, DEWP, TEMP, PRES, log1p(Iws), and the side that the wind comes from as "
                "wind_east and wind_north (0, 0 for cv, calm or variable)"
            ),
            "pm2.5 begins a day late: the 24 rows of 2010-01-01 are left out",
            ("Gaps of pm2.5 up to 6 hours are interpolated linearly, longer ones repeat the last value"),
        ),
        "files": {
            "beijing_pm25.csv": {
                "sha256": ("4127f868775e31b3956522adc0ec75af8937dde6a3896e8beed3a376c6d27f1c",),
                "bytes": 2010494,
            },
        },
        "rows": 43800,
        "columns": 7,
        "freq": "h",
        "split": "ratio_7_1_2",
        "season": 24,
        "embedded": True,
    },
}

COLUMNS = ("pm2.5", "DEWP", "TEMP", "PRES", "log1p(Iws)", "wind_east", "wind_north")
SHORT_GAP_HOURS = 6
_DIAGONAL = 0.5**0.5
_WIND = {"NW": (-_DIAGONAL, _DIAGONAL), "NE": (_DIAGONAL, _DIAGONAL), "SE": (_DIAGONAL, -_DIAGONAL), "cv": (0.0, 0.0)}


def read(name: str, path: Path, **options: Any) -> Table:
    """Read UCI's file (No, year, month, day, hour, pm2.5, DEWP, TEMP, PRES, cbwd, Iws, Is, Ir).

    Args:
        options: ``columns``, some of ``COLUMNS``.

    Raises:
        InputError: the file has another form.
    """
    refuse_options(name, options, allowed=("columns",))
    with open_binary(path) as handle:
        raw = pd.read_csv(handle)
    needed = ["year", "month", "day", "hour", "pm2.5", "DEWP", "TEMP", "PRES", "cbwd", "Iws"]
    if absent := [column for column in needed if column not in raw]:
        raise InputError(f"{path.name} has no column {absent[0]!r}, it is not in the form of {name}")
    raw = raw.iloc[max(0, raw["pm2.5"].first_valid_index() or 0) :]
    wind = np.array([_WIND[side] for side in raw["cbwd"]])
    dust = _fill(raw["pm2.5"].to_numpy(np.float64))
    numbers = np.column_stack([dust, raw["DEWP"], raw["TEMP"], raw["PRES"], np.log1p(raw["Iws"]), wind])
    stamps = pd.DatetimeIndex(pd.to_datetime(raw[["year", "month", "day", "hour"]]))
    table = Table.from_array(path.name, COLUMNS, numbers, stamps=stamps, freq=CARDS[name]["freq"])
    return table.select(options.get("columns") or COLUMNS)


def _fill(values: np.ndarray) -> np.ndarray:
    """Interpolate gaps of at most ``SHORT_GAP_HOURS``, repeat the last value over longer ones."""
    series = pd.Series(values)
    missing = series.isna()
    length = missing.groupby((~missing).cumsum()).transform("sum")  # of the gap that a row belongs to
    short = missing & (length <= SHORT_GAP_HOURS)
    return series.where(~short, series.interpolate(limit_area="inside")).ffill().to_numpy()
