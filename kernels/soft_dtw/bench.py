"""What the benchmark measures: soft-DTW of a batch of pairs against the recurrence row by row in eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from toolkit.kernels._common.bench import Case, with_gradients
from toolkit.kernels.soft_dtw import reference, soft_dtw

PAIRS, POINTS, FEATURES, GAMMA = 32, 48, 8, 1.0


def by_cells(x: Tensor, y: Tensor) -> Tensor:
    """The recurrence with autograd, a cell of all pairs at a time."""
    lengths = [(x.shape[1], y.shape[1])] * len(x)
    return reference.soft_dtw(reference.pairwise(x, y, "sqeuclidean"), lengths, None, GAMMA)


def by_diagonals(x: Tensor, y: Tensor) -> Tensor:
    """The recurrence with autograd, an anti-diagonal of all pairs at a time; as many points on both sides."""
    costs = reference.pairwise(x, y, "sqeuclidean")
    B, N, M = costs.shape
    mirrored = costs.flip(2)
    never = costs.new_full((B, 1), torch.inf)
    before = never  # R of the diagonal before, from its first row on
    two_before, first, first_before = never, 0, 0
    for k in range(N + M - 1):
        lo, hi = max(0, k - M + 1), min(N, k + 1)
        local = mirrored.diagonal(M - 1 - k, 1, 2)
        if k == 0:
            row = local
        else:
            edged = torch.cat([never, before, never], 1)  # rows first - 1 .. of diagonal k - 1
            up, left = edged[:, lo - first : hi - first], edged[:, lo - first + 1 : hi - first + 1]
            edged = torch.cat([never, two_before, never], 1)
            start = lo - first_before
            corner = edged[:, start : start + hi - lo] if k > 1 else torch.full_like(local, torch.inf)
            row = local + reference.softmin(torch.stack([up, left, corner]), GAMMA)
        two_before, first_before, before, first = before, first, row, lo
    return before[:, -1]


def bench_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, PAIRS, POINTS, FEATURES, generator=generator).unbind()
    dvalue = torch.ones(PAIRS)
    yield Case(
        name=f"soft-DTW fwd+bwd, {PAIRS} pairs of {POINTS} x {POINTS} points float32",
        ours=with_gradients(lambda x, y: soft_dtw(x, y, gamma=GAMMA), [x, y], dvalue),
        baselines={
            "eager by diagonals": with_gradients(by_diagonals, [x, y], dvalue.double()),
            "eager by cells": with_gradients(by_cells, [x, y], dvalue.double()),
        },
        exact=with_gradients(by_cells, [x.double(), y.double()], dvalue.double()),
    )
