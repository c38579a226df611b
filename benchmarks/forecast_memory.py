"""Peak memory of forecasting data: reading, scaling and windowing one table, above a process that only has its imports.

    python benchmarks/forecast_memory.py --json memory.json

The table is synthetic and as large as Electricity (26,304 rows of 321 numbers, 33.8 MB in float32). Each form of the
source runs in a process of its own; Linux only, since it reads /proc.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

RECIPE, UPDATES = "gateformer_electricity_96", 2
LIMIT = 1.5  # times the float32 table
SOURCES = ("csv", "csv.gz", "parquet", "frame")
MB = 1e6


def write_table(path: Path, rows: int, columns: int) -> None:
    """A CSV in the benchmark's form, values from a fixed seed, written block by block."""
    generator = np.random.default_rng(0)
    stamps = pd.date_range("2016-07-01", periods=rows, freq="h").strftime("%Y-%m-%d %H:%M:%S")
    names = [str(i) for i in range(columns - 1)] + ["OT"]
    with path.open("w") as handle:
        handle.write(",".join(["date", *names]) + "\n")
        for start in range(0, rows, 1024):
            block = generator.gamma(2.0, 1000.0, (min(1024, rows - start), columns))
            pd.DataFrame(block, index=stamps[start : start + 1024]).to_csv(handle, header=False, float_format="%.3f")


def in_form(csv: Path, source: str) -> str:
    """The table in one of ``SOURCES``, as ``measure`` takes it."""
    if source == "csv.gz":
        with csv.open("rb") as plain, gzip.open(f"{csv}.gz", "wb", compresslevel=1) as zipped:
            shutil.copyfileobj(plain, zipped)
        return f"{csv}.gz"
    if source == "parquet":
        pd.read_csv(csv).to_parquet(csv.with_suffix(".parquet"))
        return str(csv.with_suffix(".parquet"))
    return f"{csv}#frame" if source == "frame" else str(csv)


def memory(field: str) -> int:
    """A memory figure of this process in bytes: ``VmRSS`` now, ``VmHWM`` its peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def measure(source: str) -> dict[str, float]:
    """Load a table and gather a batch of each split; peak above the memory after the imports, in bytes."""
    import torch

    from toolkit.tasks.forecast.data import load_data

    if source.endswith(".parquet"):
        import pyarrow.parquet  # noqa: F401, the libraries belong to the idle process
    table = pd.read_csv(source.removesuffix("#frame")) if source.endswith("#frame") else source
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    idle = memory("VmRSS")
    data = load_data(table, lookback=96, horizon=96, marks=True)
    loaded = memory("VmHWM")
    for split in data.splits:
        data.batch(split, torch.arange(min(8, data.num_windows(split))))
    return {"idle": idle, "load": loaded - idle, "total": memory("VmHWM") - idle}


def measure_training(source: str) -> dict[str, float]:
    """Peak of a few updates of a published recipe on the table, above the memory after the imports, in bytes."""
    from toolkit.api import resolve
    from toolkit.engine.distributed import make_accelerator
    from toolkit.engine.log import Log
    from toolkit.engine.loop import Trainer
    from toolkit.engine.run import Run
    from toolkit.engine.session import build
    from toolkit.tasks.forecast.task import Forecast

    config = Forecast.Config.build(resolve("forecast", RECIPE, {"data": {"path": source}}).layer())
    Path("/proc/self/clear_refs").write_text("5")
    idle = memory("VmRSS")
    task = build(Forecast(config))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(task, Run(Path(folder)), make_accelerator(config, "cpu"), Log(quiet=True))
        for _ in islice(trainer.updates(), UPDATES):
            pass
    return {"idle": idle, "total": memory("VmHWM") - idle}


def run_child(source: str) -> dict[str, float]:
    """Figures of a process of its own."""
    root = str(Path(__file__).resolve().parent.parent)  # a checkout need not be installed
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, __file__, "--child", source]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=26_304)
    parser.add_argument("--columns", type=int, default=321)
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        source, _, kind = args.child.partition("#")
        print(json.dumps(measure_training(source) if kind == "train" else measure(args.child)))
        return

    table_bytes = args.rows * args.columns * 4
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "table.csv"
        write_table(csv, args.rows, args.columns)
        for source in args.sources:
            results[source] = run_child(in_form(csv, source))
            results[source]["ratio"] = results[source]["total"] / table_bytes
        training = run_child(f"{csv}#train")

    print(f"float32 table: {table_bytes / MB:.1f} MB, limit {LIMIT} times that")
    print(f"{'source':10} {'idle MB':>8} {'load MB':>8} {'+ batches MB':>13} {'ratio':>6}")
    for source, row in results.items():
        print(
            f"{source:10} {row['idle'] / MB:8.1f} {row['load'] / MB:8.1f} {row['total'] / MB:13.1f} {row['ratio']:6.2f}"
        )

    print(f"\nthe same CSV in training, {UPDATES} updates of {RECIPE}: {training['total'] / MB:.0f} MB above idle")
    if args.json:
        figures = {"table_bytes": table_bytes, "limit": LIMIT, "data_path": results, "training": training}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    if "csv" in results and results["csv"]["ratio"] > LIMIT:
        sys.exit(f"the data path of the CSV takes {results['csv']['ratio']:.2f} times the table")


if __name__ == "__main__":
    main()
