"""Exchange rates of eight countries, daily (Lai et al., LSTNet, SIGIR 2018)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.data.tables import Table, read_table

CARDS: dict[str, dict[str, Any]] = {
    "exchange": {
        "title": "Daily exchange rates of eight countries",
        "licence": "none stated",
        "homepage": "https://github.com/laiguokun/multivariate-time-series-data",
        "citation": (
            "Lai et al., Modeling Long- and Short-Term Temporal Patterns with Deep Neural Networks, SIGIR 2018"
        ),
        "notes": (
            "No licence is stated for the data: use your own copy, do not pass it on",
            "Real rates, made-up daily stamps",
            (
                "Against the text file of the original collection the last two columns are swapped: OT is "
                "text column 7, 6 is text column 8; matters for modes S and MS"
            ),
        ),
        "obtain": (
            "Fetch exchange_rate/exchange_rate.csv from the data set collection of "
            "https://github.com/thuml/Time-Series-Library (README, 'Usage')"
        ),
        "files": {
            "exchange_rate.csv": {
                "sha256": ("d55e7aa2641009814a18ba3279431b13f6d413b0eab195b9ff21988d8cf94e97",),
                "bytes": 630212,
            },
        },
        "rows": 7588,
        "columns": 8,
        "freq": "D",
        "split": "ratio_7_1_2",
        "season": 7,
    },
}


def read(name: str, path: Path, **options: Any) -> Table:
    """Read a file in the benchmark's form: a time column, then numbers, ``OT`` moved to the end.

    Args:
        options: as for ``toolkit.data.tables.read_table``.
    """
    return read_table(path, **{"strict": False, "freq": CARDS[name]["freq"], "last": "OT", **options})
