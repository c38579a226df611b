"""``toolkit show``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli._print import emit_json, emit_table


class Kind(str, Enum):
    recipe = "recipe"
    model = "model"
    dataset = "dataset"
    run = "run"


def show(
    kind: Annotated[Kind, typer.Argument(help="What to show.")],
    names: Annotated[list[str], typer.Argument(help="Its name; for runs one or more folders.", metavar="NAME|DIR…")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Show a recipe with all its keys, a model's arguments, a data set's card, or the results of runs.

    A recipe is printed as YAML that can be changed and passed back with --recipe. For a run, its report is made anew.

    Examples:

        toolkit show recipe gateformer_etth1_96 > my.yaml

        toolkit show run runs/forecast/gateformer_etth1_96/*
    """
    from toolkit import api

    if kind is Kind.run:
        rows = [row for name in names for row in api.results(Path(name))]
        emit_json(rows) if as_json else emit_table(rows)
        return
    for name in names:
        text, values = api.show(kind.value, name)
        emit_json(values) if as_json else typer.echo(text.rstrip())
