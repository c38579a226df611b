"""``toolkit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli._print import emit_json


def export(
    run: Annotated[Path | None, typer.Option(help="Run folder; its best checkpoint counts.")] = None,
    model: Annotated[str | None, typer.Option(help="Model directory, or a name of timm.", metavar="NAME|PATH")] = None,
    form: Annotated[str, typer.Option("--format", help="onnx or torch-export.")] = "onnx",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write, or to replace.")] = None,
    untrained: Annotated[bool, typer.Option(help="Random weights for a name, to measure speed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was written as JSON on standard output.")] = False,
) -> None:
    """Write a model as a file for other programs, checked against the model before it is kept.

    Examples:

        toolkit export --run runs/forecast/custom/20260101-120000 -o forecaster.onnx

        toolkit export --model vig_tiny --format torch-export
    """
    from toolkit import exports

    written = exports.export(run=run, model=model, format=form, output=output, untrained=untrained)
    if as_json:
        emit_json(written)
        return
    inputs = ", ".join(f"{name} [{', '.join(map(str, axes))}]" for name, axes in written["inputs"].items())
    notes = "".join(f"; {note}" for note in written["notes"])
    typer.echo(
        f"{written['file']}: {written['model']}, {inputs} -> {written['output']}, {written['mb']} MB, "
        f"{written['seconds']} s, off by at most {written['error']:.0e}{notes}"
    )
