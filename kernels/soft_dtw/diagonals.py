"""The recurrence by anti-diagonals, for many pairs at once: values, and the alignment that is their gradient.

Cells of one anti-diagonal k = i + j do not depend on each other. Costs are stored skewed, ``[k, i, pair]``, so that a
diagonal of all pairs, its three predecessors included, is one contiguous piece each. Everything is float64, in units of
gamma times ln 2: a rounding of R is divided by gamma on its way into the gradient, and 2^x is cheaper
than e^x. ``NEVER`` stands for infinity: differences of unreachable cells stay numbers, and their weights 0.

Legend: G pairs of a group, N M longest lengths, K = N + M - 1 diagonals; row i of a buffer with an edge is row i + 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEVER = 1e150
GROUP = 1 << 13  # cells of a diagonal over all pairs of a group: three stay in the cache
WEIGHTS = 1 << 23  # of a group's alignment, 64 MB in float64; longer pairs go one by one

Ranges = list[tuple[int, int]]  # first row and the one after the last, of each diagonal


def group_size(N: int, M: int, with_gradient: bool) -> int:
    size = GROUP // (N + 2)
    return max(1, min(size, WEIGHTS // (3 * (N + M) * N)) if with_gradient else size)


def solve(
    cost: Tensor, lengths: list[tuple[int, int]], inside: Tensor | None, gamma: float, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Values ``[G]`` and the alignment ``[G, N, M]`` (d value / d cost) for float64 costs ``[G, N, M]``, overwritten.

    A pair whose end cannot be reached has a value of at least ``NEVER * gamma``.
    """
    G, N, M = cost.shape
    if inside is not None:
        cost.masked_fill_(~inside, NEVER)
    unit = gamma * math.log(2) if gamma else 1.0
    if unit != 1:
        cost.div_(unit)
    skewed = cost.new_empty(N + M - 1, N, G)
    by_cell(skewed, N, M, G).copy_(cost.permute(1, 2, 0))
    ranges = diagonals(N, M, inside)
    weights = cost.new_empty(N + M - 1 if with_gradient else 1, 3, N, G)
    values = forward(skewed, ranges, lengths, weights, gamma > 0, with_gradient)
    if not with_gradient:
        return values * unit, None
    alignment = backward(skewed, ranges, lengths, weights)
    return values * unit, by_cell(alignment, N, M, G).permute(2, 0, 1).contiguous()


def by_cell(skewed: Tensor, N: int, M: int, G: int) -> Tensor:
    """``[k, i, g]`` seen as ``[i, j, g]``."""
    return skewed.as_strided((N, M, G), ((N + 1) * G, N * G, 1))


def diagonals(N: int, M: int, inside: Tensor | None) -> Ranges:
    """Rows of each diagonal between the first and the last cell inside the band of any pair."""
    if inside is None:
        return [(max(0, k - M + 1), min(N, k + 1)) for k in range(N + M - 1)]
    i, j = inside.any(0).nonzero(as_tuple=True)
    first = torch.full((N + M - 1,), N, device=i.device).scatter_reduce_(0, i + j, i, "amin")
    last = torch.zeros(N + M - 1, dtype=torch.long, device=i.device).scatter_reduce_(0, i + j, i + 1, "amax")
    return list(zip(first.tolist(), last.tolist(), strict=True))


def forward(
    cost: Tensor, ranges: Ranges, lengths: list[tuple[int, int]], weights: Tensor, soft: bool, with_gradient: bool
) -> Tensor:
    """Values ``[G]``; fills the weights of the predecessors (i-1, j), (i, j-1), (i-1, j-1) of every cell."""
    _, N, G = cost.shape
    ends: dict[int, list[int]] = {}
    for pair, (n, m) in enumerate(lengths):
        ends.setdefault(n + m - 2, []).append(pair)
    values = cost.new_full((G,), NEVER)
    rows = cost.new_full((3, N + 1, G), NEVER)
    rows[1, 0] = 0  # two diagonals before the first one
    scratch = cost.new_empty(2, N, G)
    for k, (lo, hi) in enumerate(ranges):
        row, before, two_before = rows[k % 3], rows[(k - 1) % 3], rows[(k - 2) % 3]
        if lo < hi:
            ways = before[lo:hi], before[lo + 1 : hi + 1], two_before[lo:hi]
            least, total, local = scratch[0, lo:hi], scratch[1, lo:hi], cost[k, lo:hi]
            torch.minimum(torch.minimum(ways[0], ways[1], out=least), ways[2], out=least)
            w = weights[k if with_gradient else 0, :, lo:hi]
            if soft:
                for way, share in zip(ways, w, strict=True):
                    torch.sub(least, way, out=share)
                torch.add(torch.add(*w.exp2_()[:2], out=total), w[2], out=total)
                if with_gradient:
                    w.div_(total)
                local = local - total.log2_()
            elif with_gradient:
                hard_choice(ways, least, w)
        row.fill_(NEVER)
        if lo < hi:
            torch.add(local, least, out=row[lo + 1 : hi + 1])
        for pair in ends.get(k, ()):
            values[pair] = row[lengths[pair][0], pair]
    return values


def hard_choice(ways: tuple[Tensor, ...], least: Tensor, weights: Tensor) -> None:
    """1 for the first predecessor that is the least, 0 for the others."""
    free = torch.ones_like(least, dtype=torch.bool)
    for way, share in zip(ways, weights, strict=True):
        chosen = (way == least) & free
        share.copy_(chosen)
        free &= ~chosen


def backward(skewed: Tensor, ranges: Ranges, lengths: list[tuple[int, int]], weights: Tensor) -> Tensor:
    """The alignment ``[k, i, g]``, in the memory of the costs; uses the weights up."""
    alignment = skewed.zero_()
    for pair, (n, m) in enumerate(lengths):
        alignment[n + m - 2, n - 1, pair] = 1
    for k in range(len(ranges) - 1, 0, -1):
        lo, hi = ranges[k]
        if lo >= hi:
            continue
        up, left, diagonal = weights[k, :, lo:hi].mul_(alignment[k, lo:hi])
        inner = max(lo, 1)  # the first row has no predecessor above
        alignment[k - 1, inner - 1 : hi - 1] += up[inner - lo :]
        alignment[k - 1, lo:hi] += left
        if k > 1:
            alignment[k - 2, inner - 1 : hi - 1] += diagonal[inner - lo :]
    return alignment
