"""Gated Toolkit: the published gated models of vision, time series, video, audio and handwriting.

The names below are resolved on first use, so that ``import toolkit`` and ``toolkit --help`` import no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_here = Path(__file__).parent
if not (_here / "kernels").is_dir():  # a checkout without symbolic links
    __path__.append(str(_here.parent))

_API = ("train", "evaluate", "predict", "results", "show", "dataset", "convert", "bench", "doctor")
_HUB = ("load", "save", "push", "from_official", "create_model")
_LAZY = dict.fromkeys(_API, "toolkit.api") | dict.fromkeys(_HUB, "toolkit.hub")
_LAZY["gate_forecaster"] = "toolkit.tasks.forecast.gated"
_LAZY |= dict.fromkeys(("evaluate_suite", "cross_validate"), "toolkit.suites")
_LAZY["export"] = "toolkit.exports"

if TYPE_CHECKING:
    from toolkit.api import bench, convert, dataset, doctor, evaluate, predict, results, show, train
    from toolkit.exports import export
    from toolkit.hub import create_model, from_official, load, push, save
    from toolkit.suites import cross_validate, evaluate_suite
    from toolkit.tasks.forecast.gated import gate_forecaster


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
