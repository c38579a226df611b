"""``toolkit predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli._print import emit_json
from toolkit.cli._settings import merge_settings, split_words
from toolkit.errors import InputError


def predict(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="A task of `toolkit list tasks`.")],
    run: Annotated[Path | None, typer.Option(help="Run folder; its best checkpoint counts.")] = None,
    model: Annotated[str | None, typer.Option(help="Model directory.", metavar="PATH")] = None,
    source: Annotated[str | None, typer.Option("--input", help="The input, if not given as a word.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the prediction.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on standard output.")] = False,
) -> None:
    """Apply a trained model to your input; for a forecast a CSV or Parquet file, or a data set's name.

    Examples:

        toolkit predict forecast --run runs/forecast/custom/20260101-120000 my.csv -o next.csv

        toolkit predict forecast --model my_model/ --input my.parquet --json
    """
    plain, settings = split_words(context.args)
    inputs = [*([source] if source else []), *plain]
    if len(inputs) != 1:
        raise InputError(f"{task} predicts from one input, {len(inputs)} given", "Name one file or data set")

    from toolkit import api

    prediction = api.predict(
        task, inputs[0], run=run, model=model, overrides=merge_settings(settings, task), output=output
    )
    if as_json:
        emit_json(prediction.astype({prediction.columns[0]: str}).to_dict("records"))
    elif output is None:
        typer.echo(prediction.to_csv(index=False), nl=False)
    else:
        typer.echo(f"{len(prediction)} rows written to {output}, plot beside it")
