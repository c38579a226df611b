"""``toolkit doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from toolkit.cli._print import emit_json, emit_table


def doctor(as_json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False) -> None:
    """Versions, devices, folders and optional pieces: paste it into a bug report.

    Examples:

        toolkit doctor

        toolkit doctor --json
    """
    from toolkit import api

    found = api.doctor()
    if as_json:
        emit_json(found)
        return
    for title, entries in found.items():
        typer.secho(title, bold=True)
        emit_table([{"": key, " ": value} for key, value in entries.items()])
        typer.echo()
