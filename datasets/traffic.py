"""Traffic: hourly road occupancy at 862 sensors of the San Francisco Bay area."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.data.tables import Table, read_table

CARDS: dict[str, dict[str, Any]] = {
    "traffic": {
        "title": "Road occupancy at 862 sensors, hourly",
        "licence": "none stated",
        "homepage": "https://pems.dot.ca.gov",
        "citation": ("California Department of Transportation; benchmark form: Wu et al., Autoformer, NeurIPS 2021"),
        "notes": (
            "No licence is stated for the data: use your own copy, do not pass it on",
            (
                "No checksum is known: the file is used unchecked; rows and columns follow from the published"
                " split sizes"
            ),
        ),
        "obtain": (
            "Fetch traffic/traffic.csv from the data set collection of https://github.com/thuml/Time-"
            "Series-Library (README, 'Usage')"
        ),
        "files": {
            "traffic.csv": {},
        },
        "rows": 17544,
        "columns": 862,
        "freq": "h",
        "split": "ratio_7_1_2",
        "season": 24,
    },
}


def read(name: str, path: Path, **options: Any) -> Table:
    """Read a file in the benchmark's form: a time column, then numbers, ``OT`` moved to the end.

    Args:
        options: as for ``toolkit.data.tables.read_table``.
    """
    return read_table(path, **{"strict": False, "freq": CARDS[name]["freq"], "last": "OT", **options})
