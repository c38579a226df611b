"""The forecasting part of a run's report, drawn from ``predictions.npz``."""

from __future__ import annotations

import zipfile

import numpy as np
from matplotlib.figure import Figure

from toolkit.engine.report import Section, label, markdown_table
from toolkit.engine.run import Run
from toolkit.errors import InputError

SHOWN = 4  # variates drawn


def sections(run: Run) -> list[Section]:
    """Forecasts against truth, error and coverage by step, and the gates' openness."""
    path = run.folder / "predictions.npz"
    try:
        with np.load(path) as stored:
            evidence = dict(stored)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is missing or damaged: {error}") from None
    parts = [_forecasts(evidence), _errors(run, evidence), _intervals(run, evidence)]
    gates = {name.removeprefix("gate:"): values for name, values in evidence.items() if name.startswith("gate:")}
    return [*parts, _gates(gates, evidence["variates"])] if gates else parts


def _forecasts(evidence: dict[str, np.ndarray]) -> Section:
    """The middle one of the stored test windows, for a few variates, in original units."""
    columns, window = evidence["columns"], len(evidence["truth"]) // 2
    lookback, horizon = evidence["past"].shape[1], evidence["truth"].shape[1]
    shown = min(SHOWN, len(columns))
    figure = Figure(figsize=(9, 2.1 * shown))
    future = np.arange(1, horizon + 1)
    for axes, variate in zip(np.ravel(figure.subplots(shown, 1, sharex=True)), range(shown), strict=True):
        axes.plot(np.arange(1 - lookback, 1), evidence["past"][window, :, variate], color="0.6", label="past")
        axes.plot(future, evidence["truth"][window, :, variate], color="0.1", label="truth")
        axes.plot(future, evidence["forecast"][window, :, variate], color="tab:blue", label="forecast")
        bounds = evidence["lower"][window, :, variate], evidence["upper"][window, :, variate]
        axes.fill_between(future, *bounds, color="tab:blue", alpha=0.15, linewidth=0, label="interval")
        axes.set_ylabel(label(columns[variate]))
    axes.set_xlabel("step")
    figure.axes[0].legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    text = f"A window from the middle of the test span, {shown} of {len(columns)} variates, original units."
    return Section("Forecast against truth", text, {"forecast": figure})


def _errors(run: Run, evidence: dict[str, np.ndarray]) -> Section:
    """MSE and MAE by step of the horizon, beside the baselines."""
    figure = Figure(figsize=(9, 3))
    curves = {run.metrics()["model"]: evidence}
    for path in sorted((run.folder / "baselines").glob("*/predictions.npz")):
        with np.load(path) as stored:
            curves[path.parent.name] = {name: stored[name] for name in ("mse_by_step", "mae_by_step")}
    for axes, name in zip(figure.subplots(1, 2), ("mse", "mae"), strict=True):
        for model, values in curves.items():
            by_step = values[f"{name}_by_step"]
            axes.plot(np.arange(1, len(by_step) + 1), by_step, label=model)
        axes.set(xlabel="step", ylabel=f"{name.upper()} (standardised)", ylim=(0, None))
    figure.axes[0].legend(frameon=False)
    return Section("Error by horizon step", "", {"error_by_step": figure})


def _intervals(run: Run, evidence: dict[str, np.ndarray]) -> Section:
    nominal, test = run.config()["coverage"], run.metrics()["metrics"]["test"]
    by_step = evidence["coverage_by_step"]
    text = (
        f"Split-conformal intervals from validation residuals, per step and variate, nominal coverage {nominal:.0%}. "
        f"Measured on the test span: **{test['coverage']:.1%}** (by step {by_step.min():.1%} to {by_step.max():.1%}). "
        "Overlapping windows are not exchangeable and the level of a series drifts, so the nominal value is no promise."
    )
    return Section("Prediction intervals", text)


def _gates(gates: dict[str, np.ndarray], variates: np.ndarray) -> Section:
    rows = [
        {"variate": str(variate), **{name: float(values[position]) for name, values in gates.items()}}
        for position, variate in enumerate(variates)
    ]
    figure = Figure(figsize=(9, 2.8))
    axes, width = figure.subplots(), 0.8 / len(gates)
    for number, (name, values) in enumerate(gates.items()):
        axes.bar(np.arange(len(values)) + number * width, values, width, label=name)
    axes.set(ylabel="mean openness", ylim=(0, 1), xlabel="variate")
    if len(variates) <= 30:
        axes.set_xticks(np.arange(len(variates)) + 0.4 - width / 2, [label(name) for name in variates], rotation=30)
    axes.legend(frameon=False)
    text = "Mean of each gate over channels and test windows; 1 passes the first stream, 0 the second.\n\n"
    return Section("Gate openness", text + markdown_table(rows[:60]), {"gates": figure})
