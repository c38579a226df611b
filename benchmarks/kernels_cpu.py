"""CPU times of operators: process time, one thread for all, ours and theirs in turn in one process, medians.

    python benchmarks/kernels_cpu.py                                 # all operators with cases
    python benchmarks/kernels_cpu.py gated_fusion --json times.json

What is measured stands in ``kernels/<op>/bench.py``. Wrong results get no time; the status is 1 then, and where a
promised ratio is not kept. A baseline that takes very long is measured once, and its row says so. Operators over
sequences also show how their time grows with the length, and the peak memory of their longest case: that of a fresh
process of its own during the call, above the level with the inputs in place (Linux only).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from toolkit import registry
from toolkit.kernels._common import bench, memory

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment() -> dict[str, str]:
    """What the figures depend on."""
    pages = HUGE_PAGES.read_text().split("[")[1].split("]")[0] if HUGE_PAGES.exists() else "none"
    return {
        "torch": torch.__version__,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "huge pages": pages,
    }


def peaks(op: str) -> Iterator[dict[str, Any]]:
    """Peak memory of an operator's ``memory_case()`` and of its first baseline, each in a process of its own."""
    module = f"toolkit.kernels.{op}.bench"
    if not importlib.util.find_spec(module) or not hasattr(importlib.import_module(module), "memory_case"):
        return
    root = str(Path(__file__).resolve().parent.parent)  # a checkout need not be installed
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    for whose in ("ours", "first baseline"):
        words = [sys.executable, __file__, op, "--peak", whose]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        yield {"op": op, **json.loads(done.stdout)}


def peak(op: str, whose: str) -> dict[str, Any]:
    module = importlib.import_module(f"toolkit.kernels.{op}.bench")
    shortest, case = next(module.bench_cases()), module.memory_case()
    for computation in (shortest.ours, *shortest.baselines.values()):  # what libraries set up at their first call
        computation()
    name, computation = ("ours", case.ours) if whose == "ours" else next(iter(case.baselines.items()))
    return {"case": case.name, "what": name, "peak_mb": bench.peak_megabytes(computation)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help="folders of kernels/; all by default")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of runs per comparison")
    parser.add_argument("--ordinary-pages", action="store_true", help="do not ask for huge pages for our results")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(peak(args.ops[0], args.peak)))
        return 0

    if args.ordinary_pages:
        memory.LARGE = sys.maxsize
    found = environment()
    print(", ".join(f"{name} {value}" for name, value in found.items()), end="\n\n")
    print("| operator | case | against | error | ours ms | theirs ms | ratio (quartiles) | promised |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for op in args.ops or [None]:
        for row in bench.run(op, args.repeats):
            rows.append(row)
            if "ratio" not in row:
                continue
            low, high = row["spread"]
            spread = f" ({low:.2f} to {high:.2f})" if row["repeats"] > 1 else " (once)"
            promised = "" if row["most"] is None else f"{row['most']}"
            print(
                f"| {row['op']} | {row['case']} | {row['against']} | {row['error']:.0e} | {row['ours_ms']:.1f} "
                f"| {row['theirs_ms']:.1f} | {row['ratio']:.2f}{spread} | {promised} |",
                flush=True,
            )
    print("\n".join(["", *bench.growth(rows), ""]))

    found_peaks = []
    if sys.platform == "linux":
        names = [registry.kernels.entry(op).name for op in args.ops] or registry.kernels.names()
        found_peaks = [row for name in names for row in peaks(name)]
        for row in found_peaks:
            print(f"{row['op']}: {row['case']}: peak memory of {row['what']} {row['peak_mb']:.0f} MB")
    wrong = bench.failures(rows)
    print("\n".join(["", *wrong]))
    if args.json:
        args.json.write_text(json.dumps({"environment": found, "rows": rows, "peaks": found_peaks}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
