"""Output of commands: tables for people, one JSON document for programs. Results go to standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer


def emit_json(value: Any) -> None:
    """One JSON document; numbers that JSON does not know become null."""
    typer.echo(json.dumps(_finite(value), indent=1, default=str))


def emit_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as an aligned table; a column for every key, in order of appearance."""
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    named = any(column.strip() for column in columns)
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=named)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    width = None if sys.stdout.isatty() else 200  # a file or a pipe has no width to wrap at
    Console(width=width, highlight=False).print(table)


def _cell(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list | tuple):
        return escape(", ".join(map(str, value)))
    return "" if value is None else escape(str(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
