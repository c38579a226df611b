"""``toolkit train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli._print import emit_json, emit_table
from toolkit.cli._settings import only_settings


def train(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="A task of `toolkit list tasks`.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe name, or a YAML file.", metavar="NAME|FILE")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="One run per seed; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Run folder (default: under runs/).")] = None,
    resume: Annotated[
        str | None, typer.Option(help="Continue a run: a folder, or the newest unfinished one.", metavar="[auto|PATH]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, train nothing.")] = False,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many updates.", min=1)] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a named data set if it is missing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="The settings, and every logged figure.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on standard output.")] = False,
) -> None:
    """Train a model, measure it beside simple baselines, and write a report.

    Any key of the task's configuration may follow, as key=value or --key value: --data my.csv, model=dlinear,
    optim.lr=1e-3 (`toolkit show recipe NAME` lists them).

    Examples:

        toolkit train forecast

        toolkit train forecast --recipe gateformer_etth1_96 --data ETTh1.csv --seed 1 --seed 2
    """
    from toolkit import api
    from toolkit.engine import report
    from toolkit.engine.distributed import leave_processes
    from toolkit.engine.log import Log
    from toolkit.engine.run import Run

    done = api.train(
        task,
        recipe,
        only_settings(context.args, task),
        seeds=seed or (),
        device=device,
        out=out,
        resume=resume == "auto" or resume or False,
        dry_run=dry_run,
        max_steps=max_steps,
        download=download,
        log=Log(quiet, verbose),
    )
    if as_json:
        emit_json(done)
    elif dry_run:
        emit_table([{"setting": key, "value": str(value)} for key, value in done.items()])
    else:
        run = Run(Path(done["folder"]))
        emit_table([{key: report.show(value) for key, value in row.items()} for row in report.results(run)])
        typer.echo(f"\nreport: {run.folder / 'report.md'} (and report.html)")
    leave_processes()
