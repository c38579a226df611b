"""Solar-Energy: power of 137 plants in Alabama, every 10 minutes of 2006."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.data.tables import Table, read_table, refuse_options

CARDS: dict[str, dict[str, Any]] = {
    "solar": {
        "title": "Solar power of 137 plants, every 10 minutes",
        "licence": "none stated",
        "homepage": "https://github.com/laiguokun/multivariate-time-series-data",
        "citation": (
            "Lai et al., Modeling Long- and Short-Term Temporal Patterns with Deep Neural Networks, SIGIR 2018"
        ),
        "notes": (
            "No licence is stated for the data: use your own copy, do not pass it on",
            (
                "No checksum is known: the file is used unchecked; rows and columns follow from the published"
                " split sizes"
            ),
            "Numbers alone: no header, no stamps, so no calendar features",
        ),
        "obtain": (
            "Fetch solar-energy/solar_AL.txt.gz from https://github.com/laiguokun/multivariate-time-series-data"
        ),
        "files": {
            "solar_AL.txt": {},
        },
        "folders": ("Solar",),
        "rows": 52560,
        "columns": 137,
        "freq": "10min",
        "split": "solar",
        "season": 144,
    },
}


def read(name: str, path: Path, **options: Any) -> Table:
    """Read a file of comma-separated numbers; the columns are called ``0``, ``1``, …

    Args:
        options: ``columns`` and ``fill``, as for ``toolkit.data.tables.read_table``.
    """
    refuse_options(name, options, allowed=("columns", "fill"))
    return read_table(path, **{"time": "", "header": False, "strict": False, "freq": CARDS[name]["freq"], **options})
