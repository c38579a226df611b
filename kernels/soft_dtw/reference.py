"""The definition of dynamic time warping and of its soft minimum, cell by cell, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_dtw(cost: Tensor, lengths: list[tuple[int, int]], inside: Tensor | None, gamma: float) -> Tensor:
    """Values ``[B]``: ``R_ij = cost_ij + softmin(R_(i-1)j, R_i(j-1), R_(i-1)(j-1))`` at each pair's last cell.

    Args:
        cost: ``[B, N, M]``.
        lengths: n and m of each pair.
        inside: cells of the band, booleans ``[B, N, M]``; None for all.
        gamma: ``softmin(x) = -gamma log sum e^(-x / gamma)``; 0 is the minimum, whose gradient goes to the first of
            equal ones.
    """
    B, N, M = cost.shape
    never = torch.full((B,), torch.inf, dtype=torch.float64, device=cost.device)
    before = [never] * (M + 1)  # row i - 1, from column -1 on
    before[0] = torch.zeros_like(never)
    rows = []
    for i in range(N):
        row = [never]
        for j in range(M):
            ways = torch.stack([before[j + 1], row[j], before[j]])
            reached = ways.amin(0).isfinite() if inside is None else ways.amin(0).isfinite() & inside[:, i, j]
            value = cost[:, i, j].double() + softmin(torch.where(reached, ways, 0), gamma)
            row.append(torch.where(reached, value, never))
        before = row
        rows.append(torch.stack(row[1:], -1))
    ends = zip(*((n - 1, m - 1) for n, m in lengths), strict=True) if lengths else ((), ())
    n, m = (torch.tensor(list(end), dtype=torch.long, device=cost.device) for end in ends)
    return torch.stack(rows, 1)[torch.arange(B, device=cost.device), n, m]


def softmin(ways: Tensor, gamma: float) -> Tensor:
    return -gamma * torch.logsumexp(-ways / gamma, 0) if gamma else ways.min(0).values


def pairwise(x: Tensor, y: Tensor, cost: str) -> Tensor:
    """Local costs ``[B, N, M]`` in float64: ``sqeuclidean``, ``l2`` or ``l1``."""
    difference = x.double().unsqueeze(2) - y.double().unsqueeze(1)
    if cost == "sqeuclidean":
        return difference.square().sum(-1)
    return torch.linalg.vector_norm(difference, ord={"l1": 1, "l2": 2}[cost], dim=-1)
