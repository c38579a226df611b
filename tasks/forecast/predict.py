"""From a table to the rows that follow it, in original units, with time stamps and intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from toolkit import registry
from toolkit.data.long import ID, TIME
from toolkit.data.tables import Table
from toolkit.engine.report import label
from toolkit.errors import InputError, require
from toolkit.tasks.forecast.data import future_input, inverse, read_source

if TYPE_CHECKING:
    from toolkit.tasks.forecast.task import Forecast

SHOWN = 4  # variates drawn
SPARE = ("future_date", "future_row")  # for tables whose columns bear all the usual names


@torch.inference_mode()
def predict_table(task: Forecast, source: Any) -> pd.DataFrame:
    """Forecast the ``horizon`` rows after a table's last one.

    Args:
        task: with a trained model restored.
        source: a data set's name, a CSV or Parquet file, or a data frame with the model's columns in original units;
            its last ``lookback`` rows are used.

    Returns:
        One row per step: its time stamp (or row number), each column's forecast in original units, and
        ``<column>_lower`` and ``<column>_upper`` where the model carries calibrated intervals. For a long table one row
        per series and step: ``unique_id``, ``ds``, ``<model>``, and ``<model>-lo-90``, ``<model>-hi-90`` for a coverage
        of 0.9.

    Raises:
        InputError: too few rows, a missing column, or values that cannot be used.
    """
    trained = _trained(task)
    mean, std = np.array(trained["mean"]), np.array(trained["std"])
    table = _read(task, source)
    check_step(table.name, table.freq, trained["freq"])
    future = future_input(
        table,
        columns=trained["columns"],
        mean=mean,
        std=std,
        lookback=task.config.lookback,
        horizon=task.config.horizon,
        marks=task.marks,
    )
    task.model.eval()
    forecast = inverse(task.model(*model_inputs(future.x, future.marks))[0], mean, std)
    scored = [trained["columns"].index(column) for column in _outputs(task)]
    half = None if task.half_width is None else task.half_width.double().numpy() * std[scored]
    shape = _long if table.long else _wide
    return shape(task, future.stamps, forecast[:, scored], half)


def _wide(task: Forecast, stamps: pd.Index, forecast: np.ndarray, half: np.ndarray | None) -> pd.DataFrame:
    """Forecasts [H, D] and half-widths of their intervals as one column per variate and bound."""
    outputs, trained = _outputs(task), task.trained["columns"]
    stamped = isinstance(stamps, pd.DatetimeIndex)
    time = next(
        name
        for name in (("date", "time", "stamp") if stamped else ("row", "number", "step")) + SPARE
        if name not in trained
    )
    rows: dict[str, Any] = {time: stamps}
    for number, column in enumerate(outputs):
        rows[column] = forecast[:, number]
        if half is not None:
            if clash := {f"{column}_lower", f"{column}_upper"} & set(outputs):
                raise InputError(f"the column {clash.pop()!r} bears the name of an interval bound", "Rename it")
            rows[f"{column}_lower"] = rows[column] - half[:, number]
            rows[f"{column}_upper"] = rows[column] + half[:, number]
    return pd.DataFrame(rows)


def _long(task: Forecast, stamps: pd.Index, forecast: np.ndarray, half: np.ndarray | None) -> pd.DataFrame:
    """The same as one row per series and step, series after series."""
    outputs, values = _outputs(task), forecast.T.ravel()
    rows: dict[str, Any] = {ID: np.repeat(outputs, len(stamps)), TIME: stamps.append([stamps] * (len(outputs) - 1))}
    rows[task.config.model.name] = values
    if half is not None:
        lower, upper = bound_names(task.config.model.name, task.config.coverage)
        rows[lower], rows[upper] = values - half.T.ravel(), values + half.T.ravel()
    return pd.DataFrame(rows)


def bound_names(model: str, coverage: float) -> tuple[str, str]:
    """Columns of an interval's bounds in long tables, as statsforecast names them: ``model-lo-90``, ``model-hi-90``."""
    return f"{model}-lo-{100 * coverage:g}", f"{model}-hi-{100 * coverage:g}"


def write_table(task: Forecast, prediction: pd.DataFrame, source: Any, output: Path) -> None:
    """Write a prediction as CSV, or as Parquet by its suffix, and a plot with the past beside it.

    Args:
        output: the file, or a folder that gets ``prediction.csv``.

    Raises:
        InputError: the folder does not exist, or another kind of file is asked for.
    """
    output = output / "prediction.csv" if output.is_dir() else output
    if not output.parent.is_dir():
        raise InputError(f"cannot write {output}: the folder {output.parent} does not exist")
    if output.suffix not in (".csv", ".parquet"):
        raise InputError(f"cannot write {output}: its form is not known", "Name a .csv or a .parquet file")
    aside = output.with_name(f".tmp-{output.name}")
    if output.suffix == ".parquet":
        require("pyarrow", extra="parquet", purpose="Writing Parquet")
        prediction.to_parquet(aside, index=False)
    else:
        prediction.to_csv(aside, index=False)
    aside.replace(output)
    _plot(task, prediction, _read(task, source)).savefig(output.with_suffix(".png"), dpi=110, bbox_inches="tight")


def _read(task: Forecast, source: Any) -> Table:
    section = task.config.data
    named = isinstance(source, str) and source in registry.datasets
    own = {} if named else {"columns": task.trained["columns"], "time": section.time, "freq": section.freq}
    return read_source(source, fill=0 if named else task.config.fill, **own)[0]


def model_inputs(x: Tensor, marks: Tensor | None) -> tuple[Tensor, ...]:
    """Arguments of a model: the look-back (B, L, D), and its part of the marks (B, L + H, F) if it uses them."""
    return (x,) if marks is None else (x, marks[:, : x.shape[1]])


def check_step(name: str, freq: str | None, trained: str | None) -> None:
    """Raise if a table's step is another than the one that a model was trained on."""
    if freq and trained and pd.tseries.frequencies.to_offset(freq) != pd.tseries.frequencies.to_offset(trained):
        raise InputError(f"{name} has a row every {freq}, the model was trained on {trained}", "Resample the table")


def _trained(task: Forecast) -> dict[str, Any]:
    if not task.trained:
        raise InputError(
            "this model directory holds no columns and no scaling", "Predict with a model trained by toolkit"
        )
    return task.trained


def _outputs(task: Forecast) -> list[str]:
    target = task.trained["target"]
    return task.trained["columns"] if target is None else [target]


def _plot(task: Forecast, prediction: pd.DataFrame, table: Table) -> Figure:
    columns = _outputs(task)[:SHOWN]
    lookback = task.config.lookback
    past = table.select(columns).original(table.rows - lookback)
    stamps = table.stamps[-lookback:] if table.stamps is not None else np.arange(table.rows - lookback, table.rows)
    figure = Figure(figsize=(9, 2.1 * len(columns)))
    for number, (axes, column) in enumerate(
        zip(np.ravel(figure.subplots(len(columns), 1, sharex=True)), columns, strict=True)
    ):
        if table.long:
            drawn = prediction[prediction[ID] == column]
            time, forecast, *bounds = (drawn[name] for name in prediction.columns[1:])
        else:
            time, forecast = prediction.iloc[:, 0], prediction[column]
            ends = ("lower", "upper") if task.half_width is not None else ()
            bounds = [prediction[f"{column}_{end}"] for end in ends]
        axes.plot(stamps, past[:, number], color="0.6", label="past")
        axes.plot(time, forecast, color="tab:blue", label="forecast")
        if bounds:
            axes.fill_between(time, *bounds, color="tab:blue", alpha=0.15, linewidth=0, label="interval")
        axes.set_ylabel(label(column))
    figure.axes[0].legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    figure.autofmt_xdate()
    return figure
