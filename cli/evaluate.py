"""``toolkit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli._print import emit_json, emit_table
from toolkit.cli._settings import only_settings


def evaluate(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="A task of `toolkit list tasks`.")],
    run: Annotated[Path | None, typer.Option(help="Run folder; its best checkpoint counts.")] = None,
    model: Annotated[str | None, typer.Option(help="Model directory.", metavar="PATH")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder that gets metrics.json.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a named data set if it is missing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on standard output.")] = False,
) -> None:
    """Measure a trained model, on its own data or on other data (--data NAME|PATH).

    Examples:

        toolkit evaluate forecast --run runs/forecast/gateformer_beijing_pm25/20260101-120000

        toolkit evaluate forecast --model my_model/ --data other.csv --split test --json
    """
    from toolkit import api
    from toolkit.engine.distributed import leave_processes

    settings = only_settings(context.args, task)
    measured = api.evaluate(
        task, run=run, model=model, split=split, overrides=settings, device=device, out=out, download=download
    )
    if as_json:
        emit_json(measured)
    else:
        emit_table([{"data": measured["data"], "split": measured["split"], **measured["metrics"]}])
    leave_processes()
