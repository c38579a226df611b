"""Does the gate help a forecaster? Each host alone against the same host gated, with the same budget.

Hosts x data sets x horizons x seeds; both sides of a cell start from the same host weights and see the same batches in
the same order, with one optimiser, learning rate and number of updates for all; the best validation checkpoint counts.
The gain is ``1 - gated / alone`` of the test error, by seed, so its spread is that of pairs.

The budget is small so that the whole table takes about an hour of CPU time: small models, a look-back of 96 (ILI 36),
1,000 updates of batch 32 at a constant rate. That is 4 epochs of ETTh, 6 of Exchange, 52 of ILI, but less than one of
ETTm1. So the figures compare the two sides at an equal, short training, where a model that learns fast is at an
advantage; they are no results of a full training and stand beside no published figure. Two things besides the gates
differ: a gated host has more parameters (the table says how many), and it sees normalised windows, which DLinear alone
does not, so a part of DLinear's gain is that of the normalisation.

Every training leaves a file in ``OUT/cells``; a training whose file is there is not repeated, so a killed run goes on.

    TOOLKIT_DATA=FOLDER python benchmarks/gate_plugin.py [--updates 1000] [--hosts dlinear] [--data ili] [--jobs 2]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from toolkit.config import Layer
from toolkit.engine import loop
from toolkit.engine.checkpoint import write_text
from toolkit.engine.distributed import make_accelerator
from toolkit.engine.log import Log
from toolkit.engine.report import markdown_table
from toolkit.engine.run import Run
from toolkit.engine.session import build
from toolkit.errors import InputError, ToolkitError
from toolkit.tasks.forecast.config import ForecastConfig
from toolkit.tasks.forecast.task import Forecast

HOSTS: dict[str, Layer] = {
    "patchtst": {"dim": 16, "depth": 3, "num_heads": 4, "mlp_dim": 128},
    "itransformer": {"dim": 64, "depth": 2, "num_heads": 8, "mlp_dim": 64},
    "dlinear": {},
}
HORIZONS = {"etth1": [96, 336], "etth2": [96, 336], "ettm1": [96, 336], "exchange": [96, 336], "ili": [24, 60]}
ILI: Layer = {"lookback": 36, "model": {"patch_len": 24, "stride": 2}}  # the patches are PatchTST's
METRICS = ("mse", "mae")


class Cell(NamedTuple):
    """One training."""

    host: str
    data: str
    horizon: int
    seed: int
    gated: bool

    @property
    def file(self) -> str:
        return f"{self.host}-{self.data}-{self.horizon}-s{self.seed}-{'gated' if self.gated else 'alone'}.json"

    def config(self, updates: int, lr: float) -> ForecastConfig:
        """Everything but the gate is the same on both sides."""
        model = {"name": self.host, **HOSTS[self.host]}
        settings: Layer = {
            "model": model | (ILI["model"] if self.data == "ili" and self.host == "patchtst" else {}),
            "gate": self.gated,
            "data": self.data,
            "lookback": ILI["lookback"] if self.data == "ili" else 96,
            "horizon": self.horizon,
            "optim": {"name": "adam", "lr": lr, "schedule": "constant"},
            "batch_size": 32,
            "eval_batch_size": 256,
            "epochs": updates,  # the updates end it
            "max_steps": updates,
            "patience": None,
            "threads": 1,
            "seeds": [self.seed],
            "baselines": [],
        }
        return ForecastConfig.build(settings)


def measure(cell: Cell, updates: int, lr: float, cells: Path) -> dict[str, Any]:
    """Train one side of one cell, or read what an earlier run found."""
    config, file = cell.config(updates, lr), cells / cell.file
    if file.is_file():
        found = json.loads(file.read_text())
        if found["settings"] != config.layer():
            raise InputError(f"{file} was made with other settings", "Choose another --out")
        return found
    torch.set_num_threads(1)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        job, accelerator = build(Forecast(config)), make_accelerator(config, "cpu")
        run = Run.create(Path(folder) / "run", config, "cpu")
        progress = loop.fit(job, run, accelerator, Log(quiet=True))
        test = loop.evaluate(job, "test", accelerator)
    found = {
        **cell._asdict(),
        **{metric: test[metric] for metric in METRICS},
        "windows": test["windows"],
        "parameters": job.summary()["parameters"],
        "updates": progress.step,
        "best_update": progress.best_step,
        "cpu_seconds": round(time.process_time() - started, 2),
        "settings": config.layer(),
    }
    write_text(file, json.dumps(found, indent=1) + "\n")
    return found


def spread(values: list[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation where there are several."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def rows_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per (host, data, horizon) from the seeds of which both sides are there."""
    sides = {Cell(*(found[name] for name in Cell._fields)): found for found in results}
    rows = []
    for host, data, horizon in dict.fromkeys(cell[:3] for cell in sides):
        seeds = sorted(c.seed for c in sides if c[:3] == (host, data, horizon) and c.gated)
        pairs = [
            (sides[alone], sides[alone._replace(gated=True)])
            for seed in seeds
            if (alone := Cell(host, data, horizon, seed, False)) in sides
        ]
        if not pairs:
            continue
        row: dict[str, Any] = {"host": host, "data": data, "horizon": horizon, "seeds": len(pairs)}
        for side, name in enumerate(("alone", "gated")):
            row[f"parameters_{name}"] = pairs[0][side]["parameters"]
            for metric in METRICS:
                row[f"{metric}_{name}"] = spread([pair[side][metric] for pair in pairs])
        for metric in METRICS:
            row[f"{metric}_gain"] = spread([100 * (1 - gated[metric] / alone[metric]) for alone, gated in pairs])
        rows.append(row)
    return rows


def summary_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean gain over the cells of a host and over all: every cell weighs the same."""
    hosts = dict.fromkeys(row["host"] for row in rows)
    groups = {**{host: [row for row in rows if row["host"] == host] for host in hosts}, "all": rows}
    summary = []
    for name, group in groups.items():
        line: dict[str, Any] = {"host": name, "cells": len(group)}
        for metric in METRICS:
            gains = [row[f"{metric}_gain"][0] for row in group]
            line |= {f"{metric}_gain": spread(gains), f"{metric}_range": (min(gains), max(gains))}
            line[f"{metric}_better"] = sum(gain > 0 for gain in gains)
        summary.append(line)
    return summary


def markdown(rows: list[dict[str, Any]], summary: list[dict[str, Any]], budget: str) -> str:
    def with_spread(value: tuple[float, float | None], digits: int) -> str:
        mean, std = value
        return f"{mean:.{digits}f}" if std is None else f"{mean:.{digits}f} ± {std:.{digits}f}"

    cells = [
        {
            "host": row["host"],
            "data": f"{row['data']} {row['horizon']}",
            **{f"{metric.upper()} {side}": with_spread(row[f"{metric}_{side}"], 4)
               for metric in METRICS for side in ("alone", "gated")},
            **{f"{metric.upper()} gain, %": with_spread(row[f"{metric}_gain"], 1) for metric in METRICS},
            "parameters": f"{row['parameters_alone']:,} / {row['parameters_gated']:,}",
        }
        for row in rows
    ]  # fmt: skip
    means = []
    for line in summary:
        shown = {"host": line["host"], "cells": str(line["cells"])}
        for metric in METRICS:
            gain, (low, high), better = (line[f"{metric}_{what}"] for what in ("gain", "range", "better"))
            shown[f"mean {metric.upper()} gain, %"] = (
                f"{with_spread(gain, 1)} ({low:.1f} to {high:.1f}; better in {better})"
            )
        means.append(shown)
    seeds = sorted({row["seeds"] for row in rows})
    head = f"{budget}; mean ± standard deviation over {' or '.join(map(str, seeds))} seeds; a negative gain is a loss."
    return f"{head}\n\n{markdown_table(cells)}\n\nOver cells:\n\n{markdown_table(means)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=1000, help="updates of each training")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of each training")
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--data", nargs="+", choices=HORIZONS, default=list(HORIZONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[2021, 2022, 2023])
    parser.add_argument("--horizon", choices=("short", "long", "both"), default="both", help="96, 336 (ILI: 24, 60)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/gate_plugin"))
    options = parser.parse_args()
    (options.out / "cells").mkdir(parents=True, exist_ok=True)

    chosen = {"short": slice(0, 1), "long": slice(1, 2), "both": slice(None)}[options.horizon]
    cells = [
        Cell(host, data, horizon, seed, gated)
        for host, data in product(options.hosts, options.data)
        for horizon in HORIZONS[data][chosen]
        for seed, gated in product(options.seeds, (False, True))
    ]
    work = partial(measure, updates=options.updates, lr=options.lr, cells=options.out / "cells")
    results = []
    pool = ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"))
    try:
        for number, found in enumerate(pool.map(work, cells), start=1):
            results.append(found)
            print(
                f"{number}/{len(cells)} {Cell(*(found[name] for name in Cell._fields)).file.removesuffix('.json')}: "
                f"MSE {found['mse']:.4f} MAE {found['mae']:.4f}, {found['cpu_seconds']} s",
                flush=True,
            )
    finally:
        pool.shutdown(cancel_futures=True)  # after an error the trainings that run end, no others begin
    rows = rows_of(results)
    summary = summary_of(rows)
    seconds = sum(found["cpu_seconds"] for found in results)
    budget = f"{options.updates} updates of batch 32, Adam at {options.lr:g}, {seconds / 60:.1f} CPU minutes in all"
    result = {"budget": budget, "rows": rows, "summary": summary, "trainings": results}
    write_text(options.out / "gate_plugin.json", json.dumps(result, indent=1) + "\n")
    write_text(options.out / "gate_plugin.md", markdown(rows, summary, budget))
    print(f"\n{markdown(rows, summary, budget)}\n{options.out / 'gate_plugin.md'} (and gate_plugin.json)")


if __name__ == "__main__":
    try:
        main()
    except ToolkitError as error:
        sys.exit(f"error: {error}")
