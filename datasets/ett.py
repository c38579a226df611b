"""ETT: load and oil temperature of two electricity transformers (Zhou et al., Informer, AAAI 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.data.tables import Table, read_table

CARDS: dict[str, dict[str, Any]] = {
    "etth1": {
        "title": "Electricity Transformer Temperature, transformer 1, hourly",
        "licence": "CC BY-ND 4.0",
        "homepage": "https://github.com/zhouhaoyi/ETDataset",
        "citation": (
            "Zhou et al., Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting, AAAI 2021"
        ),
        "notes": (
            "The licence allows verbatim copies with attribution, no changed versions",
            "The rows after 20 months of 30 days are never used by the benchmark's split",
        ),
        "files": {
            "ETTh1.csv": {
                "sha256": ("f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",),
                "bytes": 2589657,
                "url": "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small/ETTh1.csv",
            },
        },
        "folders": ("ETT-small",),
        "rows": 17420,
        "columns": 7,
        "freq": "h",
        "split": "ett_hour",
        "season": 24,
    },
    "etth2": {
        "title": "Electricity Transformer Temperature, transformer 2, hourly",
        "licence": "CC BY-ND 4.0",
        "homepage": "https://github.com/zhouhaoyi/ETDataset",
        "citation": (
            "Zhou et al., Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting, AAAI 2021"
        ),
        "notes": (
            "The licence allows verbatim copies with attribution, no changed versions",
            "The rows after 20 months of 30 days are never used by the benchmark's split",
        ),
        "files": {
            "ETTh2.csv": {
                "sha256": ("a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",),
                "bytes": 2417960,
                "url": "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small/ETTh2.csv",
            },
        },
        "folders": ("ETT-small",),
        "rows": 17420,
        "columns": 7,
        "freq": "h",
        "split": "ett_hour",
        "season": 24,
    },
    "ettm1": {
        "title": "Electricity Transformer Temperature, transformer 1, every 15 minutes",
        "licence": "CC BY-ND 4.0",
        "homepage": "https://github.com/zhouhaoyi/ETDataset",
        "citation": (
            "Zhou et al., Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting, AAAI 2021"
        ),
        "notes": (
            "The licence allows verbatim copies with attribution, no changed versions",
            "The rows after 20 months of 30 days are never used by the benchmark's split",
        ),
        "files": {
            "ETTm1.csv": {
                "sha256": ("6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e",),
                "bytes": 10360719,
                "url": "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small/ETTm1.csv",
            },
        },
        "folders": ("ETT-small",),
        "rows": 69680,
        "columns": 7,
        "freq": "15min",
        "split": "ett_minute",
        "season": 96,
    },
    "ettm2": {
        "title": "Electricity Transformer Temperature, transformer 2, every 15 minutes",
        "licence": "CC BY-ND 4.0",
        "homepage": "https://github.com/zhouhaoyi/ETDataset",
        "citation": (
            "Zhou et al., Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting, AAAI 2021"
        ),
        "notes": (
            "The licence allows verbatim copies with attribution, no changed versions",
            "The rows after 20 months of 30 days are never used by the benchmark's split",
        ),
        "files": {
            "ETTm2.csv": {
                "sha256": ("db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd",),
                "bytes": 9677236,
                "url": "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small/ETTm2.csv",
            },
        },
        "folders": ("ETT-small",),
        "rows": 69680,
        "columns": 7,
        "freq": "15min",
        "split": "ett_minute",
        "season": 96,
    },
}


def read(name: str, path: Path, **options: Any) -> Table:
    """Read a file in ETT's form: a time column, then numbers, in the file's order.

    Args:
        options: as for ``toolkit.data.tables.read_table``.
    """
    return read_table(path, **{"strict": False, "freq": CARDS[name]["freq"], **options})
