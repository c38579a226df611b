"""ILI: influenza-like illness in the USA, weekly (Centers for Disease Control and Prevention, FluView)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.data.tables import Table, read_table

CARDS: dict[str, dict[str, Any]] = {
    "ili": {
        "title": "Influenza-like illness, USA, weekly",
        "licence": "none stated",
        "homepage": "https://gis.cdc.gov/grasp/fluview/fluviewinteractive.html",
        "citation": (
            "US Centers for Disease Control and Prevention, FluView; benchmark form: Wu et al., "
            "Autoformer, NeurIPS 2021"
        ),
        "notes": (
            "No licence is stated for the data: use your own copy, do not pass it on",
            "Its customary look-back is 36, its horizons 24, 36, 48 and 60",
            "Copies with renamed columns circulate: give such a file as data.path",
        ),
        "obtain": (
            "Fetch illness/national_illness.csv from the data set collection of "
            "https://github.com/thuml/Time-Series-Library (README, 'Usage')"
        ),
        "files": {
            "national_illness.csv": {
                "sha256": ("8594cecb98c6f2f9dc014eca11c4d5d1e38ad5ce6ed0592d4abe65b146fce395",),
                "bytes": 66653,
            },
        },
        "rows": 966,
        "columns": 7,
        "freq": "W-TUE",
        "split": "ratio_7_1_2",
        "season": 52,
    },
}


def read(name: str, path: Path, **options: Any) -> Table:
    """Read a file in the benchmark's form: a time column, then numbers, ``OT`` moved to the end.

    Args:
        options: as for ``toolkit.data.tables.read_table``.
    """
    return read_table(path, **{"strict": False, "freq": CARDS[name]["freq"], "last": "OT", **options})
