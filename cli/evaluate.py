"""``toolkit evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.cli._print import emit_json, emit_table
from toolkit.cli._settings import only_settings
from toolkit.errors import InputError, ToolkitError

SUITE, CROSS = "A suite of models", "Cross-validation"  # groups of options in the help


def evaluate(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="A task of `toolkit list tasks`.")],
    run: Annotated[Path | None, typer.Option(help="Run folder; its best checkpoint counts.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model directory, or a timm model's published weights.", metavar="NAME|PATH")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a named data set if it is missing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on standard output.")] = False,
    suite: Annotated[
        str | None, typer.Option(help="Train and measure every cell of it.", metavar="NAME|FILE", rich_help_panel=SUITE)
    ] = None,
    datasets: Annotated[str | None, typer.Option(help="Only these (a,b).", rich_help_panel=SUITE)] = None,
    horizons: Annotated[str | None, typer.Option(help="Only these (96,192).", rich_help_panel=SUITE)] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of every cell; repeatable.", rich_help_panel=SUITE)] = None,
    n_windows: Annotated[int | None, typer.Option(help="Number of cutoffs.", rich_help_panel=CROSS)] = None,
    step_size: Annotated[
        int | None, typer.Option(help="Rows between cutoffs (default: the horizon).", rich_help_panel=CROSS)
    ] = None,
    refit: Annotated[
        int, typer.Option(help="Train at every N-th cutoff; 0: only before the first.", rich_help_panel=CROSS)
    ] = 1,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe of the models.", metavar="NAME|FILE", rich_help_panel=CROSS)
    ] = None,
    models: Annotated[str | None, typer.Option(help="Of a suite only these, or those to cross-validate (a,b).")] = None,
) -> None:
    """Measure a trained model, on its own data or on other data (--data NAME|PATH).

    Or train and measure many into one table: every cell of a suite (--suite; --data is then the folder of the data
    sets), or a model at several cutoffs of one table (--n-windows). Both go on where they stopped when called again,
    and take the settings of `toolkit train` as key=value.

    Examples:

        toolkit evaluate forecast --run runs/forecast/gateformer_beijing_pm25/20260101-120000

        toolkit evaluate classify --model resnet18.a1_in1k --data imagenet/val

        toolkit evaluate forecast --suite ett --data my_data/ --models gateformer,dlinear

        toolkit evaluate forecast --n-windows 5 --refit 0 --data my.csv --models dlinear,seasonal_naive horizon=24
    """
    from toolkit import api
    from toolkit.engine.distributed import leave_processes

    settings = only_settings(context.args, task)
    if suite is None and n_windows is None:
        _refuse({"--models": models, "--datasets": datasets, "--horizons": horizons, "--seed": seed}, "--suite NAME")
        _refuse({"--step-size": step_size, "--recipe": recipe}, "--n-windows N")
        measured = api.evaluate(
            task, run=run, model=model, split=split, overrides=settings, device=device, out=out, download=download
        )
        if as_json:
            emit_json(measured)
        else:
            emit_table([{"data": measured["data"], "split": measured["split"], **measured["metrics"]}])
        leave_processes()
        return
    if run is not None:
        raise InputError("--run names a trained model, a suite and a cross-validation train their own")
    from toolkit import suites
    from toolkit.engine.log import Log

    where: dict[str, Any] = {"device": device, "out": out, "download": download, "log": Log(quiet)}
    if suite is not None:
        _refuse({"--n-windows": n_windows, "--model": model, "--recipe": recipe}, "no --suite")
        folder = settings.pop("data", None)
        if folder is not None and set(folder) != {"path"}:
            raise InputError(
                "--data of a suite is the folder of its data sets", "Choose among them with --datasets etth1,etth2"
            )
        only = {"model": _listed(models), "data": _listed(datasets), "horizon": _listed(horizons)}
        done = suites.evaluate_suite(
            task, suite, only=only, overrides=settings, seeds=seed or (), data_folder=folder and folder["path"], **where
        )
    else:
        _refuse({"--datasets": datasets, "--horizons": horizons, "--seed": seed}, "--suite NAME")
        compared = _listed(models) or ([model] if model else [])
        done = suites.cross_validate(
            task, recipe, settings, models=compared, n_windows=n_windows or 0, step_size=step_size, refit=refit, **where
        )
    _show(done, as_json)
    if done["failed"]:
        raise ToolkitError(
            f"{done['failed']} of {len(done['rows'])} cells failed, see {Path(done['folder']) / 'results.md'}",
            "The same command tries them again",
        )


def _show(done: Mapping[str, Any], as_json: bool) -> None:
    from toolkit.engine.suite_report import pivot

    if as_json:
        emit_json({key: value for key, value in done.items() if key != "forecasts"})
        return
    emit_table(pivot(done["rows"], done["metrics"]))
    typer.echo(
        f"\n{' / '.join(done['metrics'])}; all figures: {Path(done['folder']) / 'results.md'} (and csv, json, png)"
    )


def _listed(words: str | None) -> list[str]:
    return [word for word in (words or "").split(",") if word]


def _refuse(given: Mapping[str, Any], needed: str) -> None:
    """Raise if an option is given that belongs to another way of evaluating."""
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option} does not fit here", f"It needs {needed}")
