"""Many runs, one table: evaluation suites and time-series cross-validation. They stand above ``toolkit.api``, whose
``train`` makes every single run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from toolkit import api, registry
from toolkit.config import IN_MEMORY, Layer
from toolkit.engine.distributed import make_accelerator
from toolkit.engine.log import Log
from toolkit.engine.suite import Cell, claimed, run_cells
from toolkit.errors import InputError


def evaluate_suite(
    task: str,
    suite: str | Path,
    *,
    only: Mapping[str, Sequence[Any]] | None = None,
    overrides: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (),
    data_folder: str | Path | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    download: bool = False,
    log: Log | None = None,
) -> dict[str, Any]:
    """Train and measure every cell of a suite into one table beside quoted figures.

    Called again with the same arguments it keeps the finished cells and goes on where it stopped.

    Args:
        suite: a name such as ``ett``, or a YAML file of the same form.
        only: label to wanted values: ``{"model": ["dlinear"], "horizon": [96]}``.
        overrides: settings of every cell above the suite's, such as a smaller budget: ``{"epochs": 2}``.
        seeds: of every cell; several are shown as mean ± std. Default: the recipes'.
        data_folder: folder of the named data sets, for this call instead of ``$TOOLKIT_DATA``.
        out: suite folder; default ``runs/<task>/suites/<suite>``.
        device, download, log: as for ``train``.

    Returns:
        ``folder``, ``rows`` (``toolkit.engine.suite.run_cells``), ``metrics`` (their names) and the number of
        ``failed`` cells.

    Raises:
        InputError: no such suite or cell, a setting that a cell cannot have, or a folder of other settings; nothing is
            run then.
    """
    _single_process()
    cls = registry.tasks.load(task)
    if not hasattr(cls, "suite"):
        raise InputError(f"the task {task!r} has no suites")
    found = cls.suite(suite)
    chosen = found.select(only or {})
    own: Layer = cls.Config.combine({}, overrides or {}) | ({"seeds": list(seeds)} if seeds else {})
    if fixed := [label for label in found.cells[0].labels if label in own]:
        raise InputError(f"{fixed[0]!r} is what the cells of a suite differ in", "Choose among the cells instead")
    settings = {cell.name: cls.Config.combine(cell.settings, own) for cell in chosen}
    for cell in chosen:
        api.resolve(task, cell.recipe, settings[cell.name])

    def measure(cell: Cell, folder: Path) -> None:
        _train(task, cell, settings[cell.name], folder, device=device, download=download, log=log)

    folder = Path(out) if out else Path("runs") / task / "suites" / Path(suite).stem
    with _data_folder(data_folder), claimed(folder, {"task": task, "suite": str(suite), "settings": own}):
        rows = run_cells(found, chosen, folder, measure, log or Log(quiet=True), _budget(own))
    return _summary(folder, found.metrics, rows)


def cross_validate(
    task: str,
    recipe: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    models: Sequence[str] = (),
    n_windows: int = 5,
    step_size: int | None = None,
    refit: int | bool = True,
    device: str = "auto",
    out: str | Path | None = None,
    download: bool = False,
    log: Log | None = None,
) -> dict[str, Any]:
    """Rolling-origin cross-validation: at each cutoff train on what is before it and forecast the next horizon.

    Called again with the same arguments it keeps the finished cutoffs and goes on where it stopped. Only a table's own
    gaps see across a cutoff: ``fill`` interpolates them before the table is cut.

    Args:
        recipe, overrides, data: as for ``train``; ``data`` is the whole table.
        models: names of models to compare; default: the configured one.
        n_windows: number of cutoffs; the horizon of the last one ends with the table.
        step_size: rows between cutoffs; default: a horizon.
        refit: train anew at every cutoff (True or 1), at every n-th (n), or only at the first (False or 0).
        out: folder; default ``runs/<task>/cross_validation/<data>``.
        device, download, log: as for ``train``.

    Returns:
        ``folder``, ``rows`` (one per cutoff and model), ``metrics`` (their names), the number of ``failed`` ones, and
        ``forecasts``: a long data frame ``unique_id, ds, cutoff, y, <model>, <model>-lo-90, <model>-hi-90`` in
        original units.

    Raises:
        InputError: arguments that do not fit each other or the table; nothing is run then.
    """
    _single_process()
    cls = registry.tasks.load(task)
    if not hasattr(cls, "cross_validation"):
        raise InputError(f"the task {task!r} has no cross-validation")
    own: Layer = cls.Config.combine({}, overrides or {})
    frame = None
    if isinstance(data, str | Path):
        own = cls.Config.combine(own, {"data": str(data)})
    elif data is not None:
        frame, own = data, cls.Config.combine(own, {"data": {"path": IN_MEMORY}})
    layers = [cls.Config.combine(own, {"model": name}) for name in models] or [own]
    configs = [api.resolve(task, recipe, layer) for layer in layers]
    plan = cls.cross_validation(
        [cls(config, frame, download) for config in configs], n_windows=n_windows, step_size=step_size, refit=int(refit)
    )
    by_model = dict(zip(plan.configs, layers, strict=True))
    folder = Path(out) if out else Path("runs") / task / "cross_validation" / plan.name

    def measure(cell: Cell, place: Path) -> None:
        settings = cls.Config.combine(by_model[cell.labels["model"]], cell.settings)
        if cell.fitted is None:
            _train(task, cell, settings, place, recipe, data=frame, device=device, download=download, log=log)
            return
        trained = folder / cell.fitted
        if not (trained / "metrics.json").is_file():
            raise InputError(f"the model of {cell.fitted} is not trained")
        job = api.restored(task, trained, None, frame, {"data": cell.settings["data"]}, download)
        accelerator = make_accelerator(job.config, device)
        job.model.to(accelerator.device)
        plan.measure(job, accelerator, place)

    shared: Layer = {"task": task, "recipe": recipe and str(recipe), "settings": own, "models": list(by_model)}
    shared |= {"n_windows": n_windows, "step_size": step_size, "refit": int(refit)}
    with claimed(folder, shared):
        rows = run_cells(plan.suite, plan.suite.cells, folder, measure, log or Log(quiet=True), plan.budget)
        forecasts = plan.collect(folder)
    return {**_summary(folder, plan.suite.metrics, rows), "forecasts": forecasts}


def _train(task: str, cell: Cell, settings: Layer, folder: Path, recipe: Any = None, **options: Any) -> None:
    """Train a cell in its folder, or go on there."""
    begun = (folder / "config.yaml").is_file()
    api.train(task, recipe or cell.recipe, settings, out=folder, resume=begun, **options)


def _summary(folder: Path, metrics: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    failed = sum(row["status"] == "failed" for row in rows)
    return {"folder": str(folder), "metrics": list(metrics), "failed": failed, "rows": list(rows)}


def _budget(own: Layer) -> str:
    changed = {key: value for key, value in own.items() if key not in api.NEUTRAL}
    if not changed:
        return "that of the suite and its recipes."
    words = ", ".join(f"{key}={value}" for key, value in changed.items())
    return f"**every cell with {words}**, which is not that of the quoted figures."


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _data_folder(folder: str | Path | None) -> Any:
    """Inside, named data sets are looked for in this folder."""
    if folder is None:
        return nullcontext()
    if not Path(folder).is_dir():
        raise InputError(
            f"there is no folder {folder}", "--data of a suite is the folder that holds ett/ETTh1.csv, ..."
        )
    return _set("TOOLKIT_DATA", str(Path(folder).absolute()))


def _single_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a suite and a cross-validation run in one process", "Start them without torchrun")
