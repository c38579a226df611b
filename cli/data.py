"""``toolkit data``."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from toolkit.cli._print import emit_json, emit_table


class Action(str, Enum):
    get = "get"
    check = "check"
    path = "path"


def data(
    action: Annotated[Action, typer.Argument(help="get: download and verify; check: verify; path: where it is.")],
    name: Annotated[str | None, typer.Argument(help="A data set; for check also a table of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Get, check or find data sets. `toolkit data path` alone prints the folders that are searched.

    Examples:

        toolkit data get etth1

        toolkit data check my.csv
    """
    from toolkit import api

    found = api.dataset(action.value, name)
    if as_json:
        emit_json(found)
    else:
        emit_table([{"": key, " ": value} for key, value in found.items()])
