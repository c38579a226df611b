"""Electricity (ECL): hourly consumption of 321 clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.data.tables import Table, read_table

CARDS: dict[str, dict[str, Any]] = {
    "electricity": {
        "title": "Electricity consumption of 321 clients, hourly",
        "licence": "none stated",
        "homepage": "https://archive.ics.uci.edu/dataset/321/electricityloaddiagrams20112014",
        "citation": (
            "Trindade, ElectricityLoadDiagrams20112014, UCI Machine Learning Repository; benchmark form: "
            "Wu et al., Autoformer, NeurIPS 2021"
        ),
        "notes": (
            "No licence is stated for the benchmark's copy: use your own, do not pass it on",
            (
                "No checksum is known: the file is used unchecked; rows and columns follow from the published"
                " split sizes"
            ),
        ),
        "obtain": (
            "Fetch electricity/electricity.csv from the data set collection of "
            "https://github.com/thuml/Time-Series-Library (README, 'Usage')"
        ),
        "files": {
            "electricity.csv": {},
        },
        "rows": 26304,
        "columns": 321,
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
