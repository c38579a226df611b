"""Which golden cases belong to which family."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = Path(os.environ.get("GOLDEN_DIR", HERE))


def golden_cases(family: str) -> list[str]:
    """Names of all cases in ``$GOLDEN_DIR`` that are the family's: it is the longest family name in their file name."""
    families = [path.stem.removeprefix("test_") for path in HERE.glob("test_*.py")]
    names = sorted(path.stem for path in FOLDER.glob("*.json"))
    return [name for name in names if max((f for f in families if f in name), key=len, default=None) == family]
