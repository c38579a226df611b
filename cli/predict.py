"""``toolkit predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit import registry
from toolkit.cli._print import emit_json
from toolkit.cli._settings import merge_settings, split_words
from toolkit.errors import InputError


def predict(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="A task of `toolkit list tasks`.")],
    run: Annotated[Path | None, typer.Option(help="Run folder; its best checkpoint counts.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model directory, or a timm model's published weights.", metavar="NAME|PATH")
    ] = None,
    source: Annotated[str | None, typer.Option("--input", help="The input, if not given as a word.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the prediction.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on standard output.")] = False,
) -> None:
    """Apply a trained model to your input: for a forecast one table or data set's name; images or folders to classify.

    Examples:

        toolkit predict forecast --run runs/forecast/custom/20260101-120000 my.csv -o next.csv

        toolkit predict classify --model my_model/ photo.jpg more/ --json
    """
    plain, settings = split_words(context.args)
    inputs = [*([source] if source else []), *plain]
    several = registry.tasks.load(task).takes_several
    if not inputs or (len(inputs) > 1 and not several):
        wanted = "some" if several else "one"
        raise InputError(f"{task} predicts from {wanted} input, {len(inputs)} given", "Name files, or a data set")

    from toolkit import api

    prediction = api.predict(
        task,
        inputs if several else inputs[0],
        run=run,
        model=model,
        overrides=merge_settings(settings, task),
        output=output,
    )
    if as_json:
        emit_json(prediction.astype({prediction.columns[0]: str}).to_dict("records"))
    elif output is None:
        typer.echo(prediction.to_csv(index=False), nl=False)
    else:
        typer.echo(f"{len(prediction)} rows written to {output}")
