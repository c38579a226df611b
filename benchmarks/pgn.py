"""Cost of a training step of the parallel gated network as a sequence mixer against nn.GRU and nn.LSTM of its width.

Forward and backward (gradients of input and weights) on ``[B, T, width]``, one thread, process time; the three take
turns in one process. Before anything is timed, the unit's output is compared with its definition, step by step in
float64. A ratio above 1 says how many times faster the unit is, as the median of the rounds and their range.

    python benchmarks/pgn.py [--widths 16 32] [--lengths 168 336 720 1440] [--batch 32] [--rounds 5] [--json pgn.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit.blocks.parallel_gated import ParallelGatedUnit

TOLERANCE = 1e-5


def definition(unit: ParallelGatedUnit, x: Tensor) -> Tensor:
    """The unit in float64, one step after the other: ``[N, T, C]`` to ``[N, T, D]``."""
    state = {name: value[0].double() for name, value in unit.state_dict().items()}
    weight, to_gate, past_to_gate = (state[f"{name}.weight"] for name in ("history", "gate_input", "gate_history"))
    x, outputs = x.detach().double(), []
    for step in range(x.shape[1]):
        past = torch.einsum("nlc,lcd->nd", x[:, :step].flip(1), weight[:step]) + state["history.bias"][0]
        openness, candidate = (x[:, step] @ to_gate + past @ past_to_gate + state["gate_input.bias"]).chunk(2, dim=-1)
        outputs.append(torch.lerp(candidate.tanh(), past, openness.sigmoid()))
    return torch.stack(outputs, dim=1)


def step_of(module: nn.Module, x: Tensor, upstream: Tensor) -> Callable[[], None]:
    def step() -> None:
        module.zero_grad()
        x.grad = None
        out = module(x)
        (out if isinstance(out, Tensor) else out[0]).backward(upstream)

    return step


def compare(width: int, length: int, batch: int, rounds: int) -> dict[str, float | str]:
    torch.manual_seed(0)
    unit = ParallelGatedUnit(width, width, length)
    x, upstream = torch.randn(batch, length, width), torch.randn(batch, length, width)
    with torch.no_grad():
        expected = definition(unit, x[:2])
        error = ((unit(x[:2]) - expected).norm() / expected.norm()).item()
    if not error <= TOLERANCE:
        raise SystemExit(f"width {width}, length {length}: the unit is wrong by {error:.1e}, so its time means nothing")

    sides = {
        "pgn": unit,
        "gru": nn.GRU(width, width, batch_first=True),
        "lstm": nn.LSTM(width, width, batch_first=True),
    }
    steps = {name: step_of(module, x.clone().requires_grad_(), upstream) for name, module in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    row: dict[str, float | str] = {"width": width, "length": length, "batch": batch, "relative_error": error}
    row |= {f"{name}_ms": 1e3 * statistics.median(values) for name, values in seconds.items()}
    for name in ("gru", "lstm"):
        ratios = [other / ours for other, ours in zip(seconds[name], seconds["pgn"], strict=True)]
        row |= {f"{name}_ratio": statistics.median(ratios), f"{name}_min": min(ratios), f"{name}_max": max(ratios)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--lengths", type=int, nargs="+", default=[168, 336, 720, 1440])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"batch {options.batch}; 1 thread; process time of forward and backward; median of {options.rounds} rounds")
    print("width  length   PGN ms   GRU ms  LSTM ms  times faster than GRU      than LSTM              error")
    rows = []
    for width in options.widths:
        for length in options.lengths:
            row = compare(width, length, options.batch, options.rounds)
            rows.append(row)
            gru, lstm = (
                f"{row[f'{name}_ratio']:5.2f} ({row[f'{name}_min']:.2f}..{row[f'{name}_max']:.2f})"
                for name in ("gru", "lstm")
            )
            print(
                f"{width:5d}  {length:6d}  {row['pgn_ms']:7.1f}  {row['gru_ms']:7.1f}  {row['lstm_ms']:7.1f}"
                f"  {gru:25s}  {lstm:20s}  {row['relative_error']:.0e}"
            )
    if options.json:
        Path(options.json).write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
