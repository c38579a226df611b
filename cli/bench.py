"""``toolkit bench``."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from toolkit.cli._print import emit_json, emit_table
from toolkit.errors import ToolkitError


class Kind(str, Enum):
    kernels = "kernels"


def bench(
    kind: Annotated[Kind, typer.Argument(help="What to measure.")],
    name: Annotated[str | None, typer.Argument(help="An operator of `toolkit list kernels`; default: all.")] = None,
    repeats: Annotated[int, typer.Option(help="Pairs of runs per comparison.", min=1)] = 9,
    aot: Annotated[bool, typer.Option("--aot", help="Compile the Triton kernels instead; needs no GPU.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on standard output.")] = False,
) -> None:
    """Measure operators on the CPU against what one would use without them: process time, one thread, in turn.

    Results are compared with the exact ones first: a wrong kernel gets no speed figure, and the exit code is 1.

    Examples:

        toolkit bench kernels

        toolkit bench kernels gla --repeats 5

        toolkit bench kernels gated_fusion --aot
    """
    from toolkit import api

    rows = api.bench(kind.value, name, repeats=repeats, aot=aot)
    if as_json:
        emit_json(rows)
    else:
        emit_table([_line(row) for row in rows])
    if wrong := [f"{row['op']}, {row['case']}" for row in rows if row["wrong"]]:
        raise ToolkitError(f"{len(wrong)} of {len(rows)} fail: {'; '.join(wrong)}")


def _line(row: dict[str, Any]) -> dict[str, Any]:
    """A row as people read it."""
    if "ratio" not in row:
        return {key: value for key, value in row.items() if key not in ("wrong", "tolerance")}
    low, high = row["spread"]
    return {
        **{key: row[key] for key in ("op", "case", "against")},
        "error": f"{row['error']:.0e}",
        "ours ms": f"{row['ours_ms']:.2f}",
        "theirs ms": f"{row['theirs_ms']:.2f}",
        "ours / theirs": f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})",
    }
