"""The recurrence on a GPU: one program per pair, one anti-diagonal per step, neighbours from registers.

Everything is float64, as on a CPU and for the same reason, in units of gamma times ln 2; ``NEVER`` stands for infinity.

Legend: G pairs, N M longest lengths, n m those of a pair; a program holds the rows i of a diagonal, j = k - i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from toolkit.kernels.soft_dtw.diagonals import NEVER

# Rows of a diagonal that a program holds.
CONFIGS = ({"ROWS": 128, "num_warps": 4}, {"ROWS": 512, "num_warps": 4}, {"ROWS": 2048, "num_warps": 16})
MOST_ROWS = CONFIGS[-1]["ROWS"]
CELLS = 1 << 26  # of a group's tables, 512 MB each

FAR = tl.constexpr(NEVER)


@triton.jit
def _diagonal(k, n, m, M, ROWS: tl.constexpr):
    """Rows of a diagonal, their cells in a table ``[N, M]``, and which belong to the pair."""
    i = tl.arange(0, ROWS)
    return i, i.to(tl.int64) * M + (k - i), (i < n) & (k - i >= 0) & (k - i < m)


@triton.jit
def _dtw_fwd_kernel(
    cost, lengths, unit, values, table, N, M, SOFT: tl.constexpr, WITH_TABLE: tl.constexpr, ROWS: tl.constexpr
):
    """The value of a pair; in the table R (soft), or which predecessor is the least (hard)."""
    pair, base = tl.program_id(0), tl.program_id(0).to(tl.int64) * N * M
    n, m = tl.load(lengths + 2 * pair), tl.load(lengths + 2 * pair + 1)
    inverse = 1 / tl.load(unit)
    above = tl.maximum(tl.arange(0, ROWS) - 1, 0)
    row = tl.full([ROWS], FAR, tl.float64)
    corner = tl.where(tl.arange(0, ROWS) == 0, 0.0, row)  # the cell before (0, 0)
    for k in range(n + m - 1):
        i, cell, inside = _diagonal(k, n, m, M, ROWS)
        local = tl.load(cost + base + cell, mask=inside, other=FAR) * inverse
        up = tl.where(i == 0, FAR, tl.gather(row, above, 0))
        least = tl.minimum(tl.minimum(up, row), corner)
        if SOFT:
            shares = tl.exp2(least - up) + tl.exp2(least - row) + tl.exp2(least - corner)
            value = local + least - tl.log2(shares)
        else:
            value = local + least
        if WITH_TABLE:
            kept = value if SOFT else tl.where(up == least, 0.0, tl.where(row == least, 1.0, 2.0))
            tl.store(table + base + cell, kept, mask=inside)
        corner = up
        row = tl.where(inside, value, FAR)
    last = tl.arange(0, ROWS) == n - 1
    tl.store(values + pair, tl.sum(tl.where(last, row, 0.0), 0))


@triton.jit
def _dtw_bwd_kernel(cost, lengths, unit, table, alignment, N, M, SOFT: tl.constexpr, ROWS: tl.constexpr):
    """The alignment, from the last diagonal on; a cell gives its predecessors their shares."""
    pair, base = tl.program_id(0), tl.program_id(0).to(tl.int64) * N * M
    n, m = tl.load(lengths + 2 * pair), tl.load(lengths + 2 * pair + 1)
    inverse = 1 / tl.load(unit)
    below = tl.minimum(tl.arange(0, ROWS) + 1, ROWS - 1)
    zero = tl.zeros([ROWS], tl.float64)
    # Of the diagonal after: its alignment and, soft, R - d; hard, the choice. Of the one after that: of the row below.
    share, choice, corner_share, corner_choice = zero, zero, zero, zero
    for step in range(n + m - 1):
        k = n + m - 2 - step
        i, cell, inside = _diagonal(k, n, m, M, ROWS)
        kept = tl.load(table + base + cell, mask=inside, other=FAR)
        down_share = tl.where(i == ROWS - 1, 0.0, tl.gather(share, below, 0))
        down_choice = tl.gather(choice, below, 0)
        if SOFT:  # a share is at most 1; the bound matters where it multiplies 0
            whole = down_share * tl.exp2(tl.minimum(down_choice - kept, 0.0))
            whole += share * tl.exp2(tl.minimum(choice - kept, 0.0))
            whole += corner_share * tl.exp2(tl.minimum(corner_choice - kept, 0.0))
        else:
            whole = tl.where(down_choice == 0, down_share, 0.0) + tl.where(choice == 1, share, 0.0)
            whole += tl.where(corner_choice == 2, corner_share, 0.0)
        whole = tl.where(inside, tl.where((step == 0) & (i == n - 1), 1.0, whole), 0.0)
        tl.store(alignment + base + cell, whole, mask=inside)
        corner_share, corner_choice, share = down_share, down_choice, whole
        choice = kept
        if SOFT:
            choice = tl.where(inside, kept - tl.load(cost + base + cell, mask=inside, other=0.0) * inverse, 0.0)


def group_size(N: int, M: int, with_gradient: bool) -> int:
    return max(1, CELLS // (N * M))


def solve(
    cost: Tensor, lengths: list[tuple[int, int]], inside: Tensor | None, gamma: float, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """See ``diagonals.solve``; N is at most ``MOST_ROWS``."""
    G, N, M = cost.shape
    if inside is not None:
        cost.masked_fill_(~inside, NEVER)
    config = next(config for config in CONFIGS if config["ROWS"] >= N)
    pairs = torch.tensor(lengths, dtype=torch.int32, device=cost.device)
    scale = gamma * math.log(2) if gamma else 1.0
    unit = torch.full((1,), scale, dtype=torch.float64, device=cost.device)  # a number would arrive as float32
    values = cost.new_empty(G)
    table = cost.new_empty(cost.shape if with_gradient else (1,))
    soft = gamma > 0
    _dtw_fwd_kernel[(G,)](cost, pairs, unit, values, table, N, M, SOFT=soft, WITH_TABLE=with_gradient, **config)
    if not with_gradient:
        return values * scale, None
    alignment = torch.zeros_like(cost)
    _dtw_bwd_kernel[(G,)](cost, pairs, unit, table, alignment, N, M, SOFT=soft, **config)
    return values * scale, alignment


def aot_cases() -> Iterator[dict[str, Any]]:
    """Every specialisation that ``solve`` launches."""
    for config in CONFIGS:
        for soft in (True, False):
            for fn, tables in ((_dtw_fwd_kernel, (True, False)), (_dtw_bwd_kernel, (True,))):
                for with_table in tables:
                    constexprs = {"SOFT": soft, "WITH_TABLE": with_table, "ROWS": config["ROWS"]}
                    constexprs = {name: value for name, value in constexprs.items() if name in fn.arg_names}
                    types = {"lengths": "*i32", "N": "i32", "M": "i32"}
                    kind = f"{'soft' if soft else 'hard'} {fn.__name__[5:8]}"
                    yield {
                        "name": f"{kind}{' with table' if constexprs.get('WITH_TABLE') else ''}, {config['ROWS']} rows",
                        "fn": fn,
                        "signature": {
                            name: types.get(name, "*fp64") for name in fn.arg_names if name not in constexprs
                        },
                        "constexprs": constexprs,
                        "options": {"num_warps": config["num_warps"]},
                    }
