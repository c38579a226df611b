"""Weather: 21 variables in Jena, every 10 minutes of 2020 (Max Planck Institute for Biogeochemistry)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.data.tables import Table, read_table

CARDS: dict[str, dict[str, Any]] = {
    "weather": {
        "title": "Weather in Jena 2020, every 10 minutes",
        "licence": "none stated",
        "homepage": "https://www.bgc-jena.mpg.de/wetter/",
        "citation": (
            "Max Planck Institute for Biogeochemistry, Jena; benchmark form: Wu et al., Autoformer, NeurIPS 2021"
        ),
        "notes": (
            "No licence is stated for the data: use your own copy, do not pass it on",
            (
                "Unit signs in the header are replacement characters; one stamp is repeated (2020-05-12 "
                "06:00) and 100 minutes are absent (after 2020-05-29 09:30): the protocol ignores stamps"
            ),
            (
                "81 values of the training part are the sentinel -9999 (wv 1, max. PAR 30, OT 50). They "
                "inflate the deviations that scale wv and OT, so the two are almost flat after scaling, which"
                " lowers every published error; kept for comparability, weather_clean fills them"
            ),
        ),
        "obtain": (
            "Fetch weather/weather.csv from the data set collection of https://github.com/thuml/Time-"
            "Series-Library (README, 'Usage')"
        ),
        "files": {
            "weather.csv": {
                "sha256": ("34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",),
                "bytes": 7235425,
            },
        },
        "rows": 52696,
        "columns": 21,
        "freq": "10min",
        "split": "ratio_7_1_2",
        "season": 144,
    },
    "weather_clean": {
        "title": "Weather in Jena 2020, sentinels interpolated",
        "licence": "none stated",
        "homepage": "https://www.bgc-jena.mpg.de/wetter/",
        "citation": (
            "Max Planck Institute for Biogeochemistry, Jena; benchmark form: Wu et al., Autoformer, NeurIPS 2021"
        ),
        "notes": (
            "No licence is stated for the data: use your own copy, do not pass it on",
            (
                "Unit signs in the header are replacement characters; one stamp is repeated (2020-05-12 "
                "06:00) and 100 minutes are absent (after 2020-05-29 09:30): the protocol ignores stamps"
            ),
            (
                "The same file as weather; its 81 values of -9999 count as missing and are interpolated "
                "linearly, so errors cannot be compared with published ones"
            ),
        ),
        "obtain": (
            "Fetch weather/weather.csv from the data set collection of https://github.com/thuml/Time-"
            "Series-Library (README, 'Usage')"
        ),
        "files": {
            "weather.csv": {
                "sha256": ("34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",),
                "bytes": 7235425,
            },
        },
        "rows": 52696,
        "columns": 21,
        "freq": "10min",
        "split": "ratio_7_1_2",
        "season": 144,
    },
}


def read(name: str, path: Path, **options: Any) -> Table:
    """Read a file in the benchmark's form: a time column, then numbers, ``OT`` moved to the end.

    Args:
        options: as for ``toolkit.data.tables.read_table``.
    """
    if name == "weather_clean":
        options = {**options, "sentinels": (-9999.0,), "fill": CARDS[name]["rows"]}
    return read_table(path, **{"strict": False, "freq": CARDS[name]["freq"], "last": "OT", **options})
