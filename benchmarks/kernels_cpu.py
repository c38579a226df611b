"""CPU times of operators: process time, one thread for all, ours and theirs in turn in one process, medians.

    python benchmarks/kernels_cpu.py                                 # all operators with cases
    python benchmarks/kernels_cpu.py gated_fusion --json times.json

What is measured stands in ``kernels/<op>/bench.py``. Wrong results get no time; the status is 1 then, and where a
promised ratio is not kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help="folders of kernels/; all by default")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of runs per comparison")
    parser.add_argument("--ordinary-pages", action="store_true", help="do not ask for huge pages for our results")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

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
            promised = "" if row["most"] is None else f"{row['most']}"
            print(
                f"| {row['op']} | {row['case']} | {row['against']} | {row['error']:.0e} | {row['ours_ms']:.1f} "
                f"| {row['theirs_ms']:.1f} | {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {promised} |"
            )
    wrong = bench.failures(rows)
    print("\n".join(["", *wrong]))
    if args.json:
        args.json.write_text(json.dumps({"environment": found, "rows": rows}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
