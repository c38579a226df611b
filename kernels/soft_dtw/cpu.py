"""Batched dynamic time warping around the recurrence: groups, bands, local costs and their gradients, in PyTorch.

The recurrence is ``solve`` of a form: here that of ``diagonals.py``, in plain PyTorch too, on a GPU that of
``triton.py``. Where gradients are wanted, the forward computes that of each value too (the alignment times the local
costs' own); the backward only scales it, so no table of R outlives its group.
Legend: B pairs, N M longest lengths, D features; a group is some pairs whose tables stay small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels.soft_dtw.diagonals import NEVER, group_size, solve
from toolkit.kernels.soft_dtw.fast import fast_alignment

__all__ = ["backward", "cost_forward", "forward", "group_size", "solve"]

Lengths = list[tuple[int, int]]


def pair_lengths(lengths: Tensor | None, B: int, N: int, M: int) -> Lengths:
    return [(N, M)] * B if lengths is None else [(n, m) for n, m in lengths.tolist()]


def band(lengths: Lengths, costs: Tensor, bandwidth: float, in_cells: bool) -> Tensor:
    """Cells that the band keeps, booleans ``[G, N, M]``; a sequence of one point has no fraction, so no band."""
    (_, N, M), device = costs.shape, costs.device
    i, j = torch.arange(N, device=device).view(-1, 1), torch.arange(M, device=device)
    if in_cells:
        return ((i - j).abs() <= bandwidth).expand(costs.shape)
    limit = float(torch.tensor(bandwidth, dtype=torch.float32))
    n, m = torch.tensor(lengths, dtype=torch.float64, device=device).view(-1, 2, 1, 1).sub(1).unbind(1)
    outside = (i / n.clamp_min(1) - j / m.clamp_min(1)).abs() > limit
    return ~(outside & (n > 0) & (m > 0))


def local_costs(x: Tensor, y: Tensor, cost: str) -> Tensor:
    """``[G, N, M]`` for float64 x ``[G, N, D]`` and y ``[G, M, D]``."""
    if cost == "l1":
        return torch.cdist(x, y, p=1.0)
    # From differences: |x|^2 + |y|^2 - 2xy cancels for near points far from the origin, and a root makes it visible.
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square_() if cost == "sqeuclidean" else distance


def features_gradient(alignment: Tensor, x: Tensor, y: Tensor, cost: str) -> tuple[Tensor, Tensor]:
    """Gradients of x and y of ``sum(alignment * costs)``."""
    if cost == "l1":
        dx, dy = torch.empty_like(x), torch.empty_like(y)
        for d in range(x.shape[-1]):
            signed = torch.sign(x[:, :, d, None] - y[:, None, :, d]).mul_(alignment)
            torch.sum(signed, 2, out=dx[..., d])
            torch.sum(signed, 1, out=dy[..., d]).neg_()
        return dx, dy
    pull = alignment * 2
    if cost == "l2":
        distance = local_costs(x, y, cost)
        pull = torch.where(distance > 0, alignment / distance, 0)
    return (
        pull.sum(2).unsqueeze(-1) * x - torch.bmm(pull, y),
        pull.sum(1).unsqueeze(-1) * y - torch.bmm(pull.mT, x),
    )


def groups(lengths: Lengths, with_gradient: bool, form: Any) -> Iterator[tuple[Tensor, Lengths, int, int]]:
    """Pairs of similar lengths: their numbers, lengths, and the longest ones."""
    order = sorted(range(len(lengths)), key=lambda pair: sum(lengths[pair]))
    while order:
        longest = lengths[order[-1]]
        size = form.group_size(*longest, with_gradient)
        order, chosen = order[:-size], order[-size:]
        own = [lengths[pair] for pair in chosen]
        yield torch.tensor(chosen), own, max(n for n, _ in own), max(m for _, m in own)


def check_reached(values: Tensor, pairs: Tensor, lengths: Lengths, gamma: float, bandwidth: float) -> None:
    lost = (values >= NEVER * min(gamma, 1.0) / 2 if gamma else values >= NEVER / 2).nonzero()
    if len(lost):
        n, m = lengths[int(lost[0])]
        raise InputError(
            f"bandwidth is {bandwidth:g}, which leaves no path to the end of pair {int(pairs[lost[0]])} "
            f"({n} x {m} points)",
            "Widen the band, or resample the sequences to similar lengths.",
        )


def forward(
    x: Tensor,
    y: Tensor,
    lengths: Tensor | None,
    cost: str,
    gamma: float,
    bandwidth: float,
    in_cells: bool,
    radius: int,
    with_gradient: bool,
    form: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``[B]`` and their gradients for x and y, empty unless wanted; negative: no band, no FastDTW radius.

    ``form`` is this module or ``triton``.
    """
    (B, N, _), M = x.shape, y.shape[1]
    values, dx, dy = empty_outputs(x, y, with_gradient)
    dx.zero_()
    dy.zero_()
    for pairs, own, n, m in groups(pair_lengths(lengths, B, N, M), with_gradient, form):
        pairs = pairs.to(x.device)
        left, right = x[pairs, :n].double(), y[pairs, :m].double()
        if lengths is not None:
            for pair, (n_b, m_b) in enumerate(own):
                left[pair, n_b:], right[pair, m_b:] = 0, 0
        if radius >= 0:
            found, alignment = fast_alignment(left, right, own, cost, radius, with_gradient)
        else:
            costs = local_costs(left, right, cost)
            found, alignment = solved(costs, own, gamma, bandwidth, in_cells, with_gradient, pairs, form)
        values[pairs] = found.to(values.dtype)
        if alignment is not None:
            more_dx, more_dy = features_gradient(alignment, left, right, cost)
            dx[pairs, :n], dy[pairs, :m] = more_dx.to(dx.dtype), more_dy.to(dy.dtype)
    return values, dx, dy


def cost_forward(
    cost: Tensor, lengths: Tensor | None, gamma: float, bandwidth: float, in_cells: bool, with_gradient: bool, form: Any
) -> tuple[Tensor, Tensor]:
    """Values ``[B]`` and the alignment ``[B, N, M]``, empty unless wanted."""
    B, N, M = cost.shape
    values, dcost = empty_cost_outputs(cost, with_gradient)
    dcost.zero_()
    for pairs, own, n, m in groups(pair_lengths(lengths, B, N, M), with_gradient, form):
        pairs = pairs.to(cost.device)
        costs = cost[pairs, :n, :m].to(torch.float64, copy=True)
        found, alignment = solved(costs, own, gamma, bandwidth, in_cells, with_gradient, pairs, form)
        values[pairs] = found.to(values.dtype)
        if alignment is not None:
            dcost[pairs, :n, :m] = alignment.to(dcost.dtype)
    return values, dcost


def solved(
    costs: Tensor,
    lengths: Lengths,
    gamma: float,
    bandwidth: float,
    in_cells: bool,
    with_gradient: bool,
    pairs: Tensor,
    form: Any,
) -> tuple[Tensor, Tensor | None]:
    inside = band(lengths, costs, bandwidth, in_cells) if bandwidth >= 0 else None
    values, alignment = form.solve(costs, lengths, inside, gamma, with_gradient)
    if inside is not None:
        check_reached(values, pairs, lengths, gamma, bandwidth)
    return values, alignment


def backward(dvalues: Tensor, unit: Tensor) -> Tensor:
    """Gradient of x, y or the costs from the values' and that of each value; not differentiable again."""
    return (dvalues.view(-1, 1, 1) * unit).to(unit.dtype)


def value_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def empty_outputs(x: Tensor, y: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.shape[0] if with_gradient else 0
    values = torch.empty(x.shape[0], dtype=value_type(x), device=x.device)
    return values, x.new_empty(rows, *x.shape[1:]), y.new_empty(rows, *y.shape[1:])


def empty_cost_outputs(cost: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    values = torch.empty(cost.shape[0], dtype=value_type(cost), device=cost.device)
    return values, cost.new_empty(cost.shape[0] if with_gradient else 0, *cost.shape[1:])
