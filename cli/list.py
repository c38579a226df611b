"""``toolkit list``."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from toolkit import registry
from toolkit.cli._print import emit_json, emit_table


class Kind(str, Enum):
    models = "models"
    tasks = "tasks"
    datasets = "datasets"
    recipes = "recipes"
    kernels = "kernels"


def list_names(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern with * and ?.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """List what there is.

    Examples:

        toolkit list models

        toolkit list recipes 'gateformer_ett*'
    """
    found: registry.Registry = getattr(registry, kind.value)
    rows = []
    for name in found.names(pattern):
        entry = found.entry(name)
        row = {"name": name}
        if kind in (Kind.models, Kind.recipes):
            row["task"] = entry.group
        if isinstance(entry.card, dict):
            row |= {"title": entry.card["title"], "licence": entry.card["licence"]}
        rows.append(row)
    if as_json:
        emit_json(rows)
    elif rows:
        emit_table(rows)
    else:
        typer.echo(f"no {kind.value} match {pattern!r}", err=True)
