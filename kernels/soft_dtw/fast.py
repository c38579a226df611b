"""FastDTW, one pair at a time.

Salvador and Chan, *FastDTW: Toward Accurate Dynamic Time Warping in Linear Time and Space*, section 3.

It is an approximation: warp sequences of half the points first, and search only within ``radius`` cells of that path.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

Path = list[tuple[int, int]]
Window = list[tuple[int, int]]  # first column and the one after the last, of each row


def fast_alignment(
    x: Tensor, y: Tensor, lengths: list[tuple[int, int]], cost: str, radius: int, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Values ``[G]`` for float64 x ``[G, N, D]`` and y ``[G, M, D]``; the paths as 1 in ``[G, N, M]`` if wanted."""
    values = x.new_empty(len(lengths))
    alignment = x.new_zeros(len(x), x.shape[1], y.shape[1]) if with_gradient else None
    for pair, (n, m) in enumerate(lengths):
        value, path = fast_path(x[pair, :n].cpu(), y[pair, :m].cpu(), cost, radius)
        values[pair] = value
        if alignment is not None:
            i, j = torch.tensor(path, device=x.device).unbind(1)
            alignment[pair, i, j] = 1
    return values, alignment


def fast_path(x: Tensor, y: Tensor, cost: str, radius: int) -> tuple[float, Path]:
    n, m = len(x), len(y)
    if n < radius + 2 or m < radius + 2:
        return warp(x, y, cost, [(0, m)] * n)
    _, path = fast_path(halved(x), halved(y), cost, radius)
    return warp(x, y, cost, window(path, n, m, radius))


def halved(x: Tensor) -> Tensor:
    """Means of neighbouring points; an odd last one is dropped."""
    return x[: len(x) // 2 * 2].unflatten(0, (-1, 2)).mean(1)


def window(path: Path, n: int, m: int, radius: int) -> Window:
    """Cells that stand for those within ``radius`` of a coarse path, each of which is two by two."""
    first, last = [m] * (path[-1][0] + 1), [0] * (path[-1][0] + 1)
    for i, j in path:
        first[i], last[i] = min(first[i], j), max(last[i], j)
    rows: Window = []
    start = 0
    for i in range(n):
        nearest, farthest = max(0, i // 2 - radius), min(len(first) - 1, i // 2 + radius)
        start = max(start, 2 * (first[nearest] - radius))
        rows.append((start, min(m, 2 * (last[farthest] + radius + 1))))
    return rows


def warp(x: Tensor, y: Tensor, cost: str, rows: Window) -> tuple[float, Path]:
    """The least sum of costs along a path inside the window; of equal ways (i-1, j) wins, then (i, j-1)."""
    costs = iter(window_costs(x, y, cost, rows))
    moves: list[list[int]] = []
    before, before_start = [0.0], -1  # the row above the first one: only (-1, -1) is reached
    for start, end in rows:
        # ways[c] is the value at (i-1, start + c - 1)
        skip = start - 1 - before_start
        ways = [math.inf] * -skip + before[max(skip, 0) :]
        ways += [math.inf] * (end - start + 1 - len(ways))
        row, taken, left = [], [], math.inf
        for local, up, corner in zip(itertools.islice(costs, end - start), ways[1:], ways, strict=False):
            move = 0
            if left < up:
                up, move = left, 1
            if corner < up:
                up, move = corner, 2
            left = up + local
            row.append(left)
            taken.append(move)
        before, before_start = row, start
        moves.append(taken)

    i, j = len(x) - 1, len(y) - 1
    path = [(i, j)]
    while i or j:
        move = moves[i][j - rows[i][0]]
        i, j = i - (move != 1), j - (move != 0)
        path.append((i, j))
    return before[-1], path[::-1]


def window_costs(x: Tensor, y: Tensor, cost: str, rows: Window) -> list[float]:
    starts, widths = torch.tensor([a for a, _ in rows]), torch.tensor([b - a for a, b in rows])
    i = torch.repeat_interleave(torch.arange(len(rows)), widths)
    j = torch.arange(len(i)) + (starts - (widths.cumsum(0) - widths)).repeat_interleave(widths)
    difference = x[i] - y[j]
    if cost == "sqeuclidean":
        return difference.square().sum(-1).tolist()
    return torch.linalg.vector_norm(difference, ord={"l1": 1, "l2": 2}[cost], dim=-1).tolist()
