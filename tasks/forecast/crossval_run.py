"""Time-series cross-validation of forecasters: the runs it takes, and their forecasts as one long table."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from accelerate import Accelerator

from toolkit.data.long import ID, TIME, VALUE
from toolkit.data.tables import Table
from toolkit.engine.checkpoint import write_folder, write_text
from toolkit.engine.loop import evaluation_sums
from toolkit.engine.run import Run
from toolkit.engine.suite import Cell, Suite
from toolkit.errors import InputError
from toolkit.tasks.forecast.crossval import cutoff_borders, cutoffs
from toolkit.tasks.forecast.data import read_source
from toolkit.tasks.forecast.predict import bound_names

if TYPE_CHECKING:
    from toolkit.tasks.forecast.task import Forecast

CUTOFF = "cutoff"
SHARED = ("data", "horizon", "mode", "fill", "coverage")  # what the compared models must agree in


class CrossValidation:
    """Every model at every cutoff, each a cell of a suite.

    Args:
        jobs: one per model, on the whole table.
        n_windows: number of cutoffs.
        step_size: rows between them; None: a horizon.
        refit: at every how many cutoffs the models are trained anew; 0: only at the first.

    Raises:
        InputError: the models disagree in what they forecast, an argument is out of range, or the table is too short.
    """

    def __init__(self, jobs: Sequence[Forecast], *, n_windows: int, step_size: int | None, refit: int):
        if refit < 0:
            raise InputError(f"refit is {refit}", "0: never, 1: at every cutoff, n: at every n-th")
        self.configs = {job.config.model.name: job.config for job in jobs}
        if len(self.configs) < len(jobs):
            raise InputError("a model is named twice", f"Models: {', '.join(job.config.model.name for job in jobs)}")
        first, *others = self.configs.values()
        for config in others:
            for key in SHARED:
                if (found := config.layer()[key]) != (wanted := first.layer()[key]):
                    raise InputError(
                        f"{config.model.name} has {key}={found}, {first.model.name} has {key}={wanted}",
                        f"Set {key} for all models",
                    )
        for config in self.configs.values():
            if len(config.seeds) > 1:
                raise InputError("cross-validation takes one seed", "Set seeds=[N]")
        self.horizon = first.horizon
        self.table = _read(jobs[0])
        self.name = re.sub(r"[^\w.]+", "_", first.data.name or self.table.name)
        self.cutoffs = cutoffs(self.table.rows, self.horizon, n_windows, step_size)
        for config in self.configs.values():
            cutoff_borders(self.table.name, self.cutoffs[0], self.table.rows, config.lookback, self.horizon)
        every = refit or n_windows
        when = {0: "trained before the first cutoff", 1: "trained anew at every cutoff"}
        how = when.get(refit, f"trained anew at every {refit} cutoffs")
        self.budget = f"that of the recipes and of `suite.yaml`; {how}."
        cells = []
        for number, cutoff in enumerate(self.cutoffs):
            for model in self.configs:
                at = self._cell(model, cutoff)
                trained = self._cell(model, self.cutoffs[number - number % every])
                cells.append(at if trained == at else self._cell(model, cutoff, trained.name))
        note = (
            f"{n_windows} cutoffs; at each the next {self.horizon} rows are forecast. MSE and MAE of the series "
            "standardised by the training rows of the model's own cutoff. The forecasts in original units are in "
            "`forecasts.csv`, their errors by series in `series.csv`."
        )
        self.suite = Suite(f"Cross-validation on {first.data.name or self.table.name}", cells, ("mse", "mae"), note)

    def _cell(self, model: str, cutoff: int, fitted: str | None = None) -> Cell:
        settings = {"data": {"cutoff": cutoff}, "baselines": []}
        return Cell({CUTOFF: str(self._stamps(cutoff - 1, cutoff)[0]), "model": model}, None, settings, fitted=fitted)

    def _stamps(self, start: int, stop: int) -> pd.Index:
        """Time stamps of rows, or their numbers."""
        return pd.RangeIndex(start, stop) if self.table.stamps is None else self.table.stamps[start:stop]

    def measure(self, job: Forecast, accelerator: Accelerator, folder: Path) -> None:
        """Forecast and measure the window after a cutoff with a model that was trained before an earlier one.

        Args:
            job: with the trained model restored, and ``data.cutoff`` set.
            folder: gets ``metrics.json`` and ``predictions.npz``, both or none.
        """
        sums = evaluation_sums(job, "test", accelerator)
        measured = {**job.summary(), "metrics": {"test": job.metrics(sums)}}
        with write_folder(folder) as aside:
            np.savez_compressed(aside / "predictions.npz", allow_pickle=False, **job.evidence(sums))
            (aside / "metrics.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")

    def collect(self, folder: Path) -> pd.DataFrame:
        """Write ``forecasts.csv`` and ``series.csv`` from the finished cells; returns the former.

        Returns:
            One row per series, cutoff and step: ``unique_id``, ``ds``, ``cutoff`` (the last known time), ``y``, and
            each model's forecast and bounds, in original units.
        """
        parts = [self._window(folder, cutoff) for cutoff in self.cutoffs]
        columns = [ID, TIME, CUTOFF, VALUE, *(name for model in self.configs for name in self._names(model))]
        forecasts = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
        forecasts = forecasts.reindex(columns=[name for name in columns if name in forecasts])
        rows = []
        for model, (series, held) in (
            (model, group)
            for group in forecasts.groupby(ID, sort=False)
            for model in self.configs
            if model in forecasts
        ):
            error = (held[model] - held[VALUE]).dropna()
            lower, upper = (held[name] for name in self._names(model)[1:])
            inside = held[VALUE].between(lower, upper)[error.index]
            figures = {"mae": error.abs().mean(), "rmse": (error**2).mean() ** 0.5, "coverage": inside.mean()}
            rows.append({ID: series, "model": model, **figures})
        write_text(folder / "forecasts.csv", forecasts.to_csv(index=False))
        write_text(folder / "series.csv", pd.DataFrame(rows).to_csv(index=False))
        return forecasts

    def _names(self, model: str) -> list[str]:
        return [model, *bound_names(model, self.configs[model].coverage)]

    def _window(self, folder: Path, cutoff: int) -> pd.DataFrame:
        """The forecasts of one cutoff by all models that are measured there."""
        window = pd.DataFrame()
        for model in self.configs:
            run = Run(folder / self._cell(model, cutoff).name)
            if not run.finished:
                continue
            with np.load(run.folder / "predictions.npz") as stored:
                evidence = {name: stored[name] for name in ("columns", "forecast", "lower", "upper")}
            series = [str(name) for name in evidence["columns"]]
            if window.empty:
                truth = self.table.select(series).original(cutoff, cutoff + self.horizon)
                stamps = self._stamps(cutoff, cutoff + self.horizon)
                keys = {ID: np.repeat(series, self.horizon), TIME: stamps.append([stamps] * (len(series) - 1))}
                window = pd.DataFrame({**keys, CUTOFF: self._stamps(cutoff - 1, cutoff)[0], VALUE: truth.T.ravel()})
            for name, kind in zip(self._names(model), ("forecast", "lower", "upper"), strict=True):
                window[name] = evidence[kind][0].T.ravel()
        return window


def _read(job: Forecast) -> Table:
    """The table of a job, whole."""
    section = job.config.data
    named = job.frame is None and section.name is not None
    options = {"columns": section.columns, "time": section.time, "freq": section.freq, "fill": job.config.fill}
    source = section.name if named else section.path if job.frame is None else job.frame
    return read_source(source, path=section.path if named else None, download=job.download, **options)[0]
