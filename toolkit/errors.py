"""Errors that reach the user: one line that names the input, what is wrong with it and what to do.

Raise one of these where the value is used; the command line prints ``str(error)`` and exits with ``exit_code``.
Anything else that escapes is a defect of the toolkit and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class ToolkitError(Exception):
    """A run failed for a reason that the message explains.

    Args:
        message: what is wrong, with the offending value.
        hint: what to do about it; appended to the message.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(f"{message}. {hint}" if hint else message)


class InputError(ToolkitError):
    """Bad usage, configuration, file, column or value."""

    exit_code = 2


class DataNotFoundError(ToolkitError):
    """A named data set is not on this machine, or its file has another checksum."""

    exit_code = 3


class MissingPackageError(ToolkitError):
    """An optional package is not installed."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with up to three known names that resemble ``name``, empty if none does."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(by_lower[match]) for match in matches)}?" if matches else ""


def require(package: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        package: import name.
        extra: the extra of ``gated-toolkit`` that installs it.
        purpose: what needs it, for the message ("Reading Parquet").
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{purpose} needs {package}", f'Install it with: pip install "gated-toolkit[{extra}]"'
        ) from error
