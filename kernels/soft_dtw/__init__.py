"""Dynamic time warping of batches of pairs: ``soft_dtw(x, y)``, ``dtw(x, y)``, and both from local costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.backends import Operator
from toolkit.kernels._common.sequences import FLOATS
from toolkit.kernels.soft_dtw import cpu, reference

__all__ = ["dtw", "soft_dtw", "soft_dtw_from_costs"]

OPERATOR = Operator("soft_dtw", double=True)
MOST_ROWS = 2048  # points of x that a program of the Triton form holds

Lengths = Tensor | Sequence[Sequence[int]]
COSTS = ("sqeuclidean", "l2", "l1")


def soft_dtw(
    x: Tensor,
    y: Tensor,
    *,
    gamma: float = 1.0,
    cost: str = "sqeuclidean",
    lengths: Lengths | None = None,
    bandwidth: int | float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Soft dynamic time warping of each pair.

    ``R_ij = d_ij + softmin(R_(i-1)j, R_i(j-1), R_(i-1)(j-1))``, ``softmin(a) = -gamma log sum e^(-a / gamma)``; the
    value is R at the last cell (Cuturi and Blondel, *Soft-DTW: a Differentiable Loss Function for Time-Series*,
    section 2). Computed in float64. A value is not divided by the lengths, and no root is taken.

    Args:
        x: ``[B, N, D]``.
        y: ``[B, M, D]``, in x's type.
        gamma: at least 0; 0 is plain DTW, whose gradient goes along one best path.
        cost: ``sqeuclidean`` |x_i - y_j|^2, ``l2`` its root, or ``l1``.
        lengths: integers ``[B, 2]``, the points of x and of y of each pair; what lies beyond is not read.
        bandwidth: an integer b keeps the cells |i - j| <= b; a float b keeps |i / (n-1) - j / (m-1)| <= b, b rounded to
            float32; None keeps all.
        backend: ``auto``, ``triton``, ``torch`` or ``reference`` (``toolkit.kernels._common.backends``).

    Returns:
        ``[B]`` in x's type, float32 for lower precision.

    Raises:
        InputError: arguments that do not fit, or a band that leaves a pair no path to its last cell.
    """
    return _run(x, y, gamma, cost, lengths, bandwidth, backend)


def dtw(
    x: Tensor,
    y: Tensor,
    *,
    cost: str = "l2",
    lengths: Lengths | None = None,
    bandwidth: int | float | None = None,
    radius: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Dynamic time warping of each pair: the least sum of local costs along a path of steps (1,0), (0,1), (1,1).

    Args:
        x: as of ``soft_dtw``, like y, cost, lengths, bandwidth and backend.
        radius: at least 1 for FastDTW (Salvador and Chan), an approximation from above that matches published
            verifiers, for parity and not for speed. None is exact.

    Returns:
        ``[B]``; no root, no division. The gradient goes along one best path.

    Raises:
        InputError: as ``soft_dtw``; a radius below 1, or together with a band or another form than ``torch``.
    """
    if radius is not None and (radius < 1 or bandwidth is not None or backend not in ("auto", "torch")):
        raise InputError(
            f"radius is {radius}, bandwidth {bandwidth}, backend {backend!r}: FastDTW needs a radius of at least 1, "
            "no band, and has no definition and no kernel apart from the form torch"
        )
    return _run(x, y, 0.0, cost, lengths, bandwidth, backend, radius)


def soft_dtw_from_costs(
    costs: Tensor,
    *,
    gamma: float = 1.0,
    lengths: Lengths | None = None,
    bandwidth: int | float | None = None,
    backend: str = "auto",
) -> Tensor:
    """``soft_dtw`` of given local costs ``[B, N, M]``; their gradient is the alignment.

    Args:
        costs: d_ij; the other arguments are as of ``soft_dtw``.

    Returns:
        ``[B]`` in the costs' type, float32 for lower precision.

    Raises:
        InputError: as ``soft_dtw``.
    """
    if costs.dim() != 3 or 0 in costs.shape[1:] or costs.dtype not in FLOATS:
        raise InputError(f"costs is {costs.dtype} {list(costs.shape)}, not floats [B, N, M] with N, M >= 1")
    form = _form(backend, gamma, costs)
    pairs = _check_lengths(lengths, bandwidth, *costs.shape)
    band, in_cells = _band(bandwidth)
    if form == "reference":
        return _reference(costs, pairs, gamma, band, in_cells)
    with_gradient = torch.is_grad_enabled() and costs.requires_grad
    return _cost_forward(costs, pairs, float(gamma), band, in_cells, with_gradient, form)[0]


def _run(
    x: Tensor,
    y: Tensor,
    gamma: float,
    cost: str,
    lengths: Lengths | None,
    bandwidth: int | float | None,
    backend: str,
    radius: int | None = None,
) -> Tensor:
    if x.dim() != 3 or 0 in x.shape[1:] or x.dtype not in FLOATS:
        raise InputError(f"x is {x.dtype} {list(x.shape)}, not floats [B, N, D] with N, D >= 1")
    B, N, D = x.shape
    if y.dim() != 3 or y.shape[0] != B or y.shape[2] != D or not y.shape[1]:
        raise InputError(f"y has shape {list(y.shape)}, not [{B}, M, {D}] with M >= 1")
    if y.dtype != x.dtype or y.device != x.device:
        raise InputError(f"y is {y.dtype} on {y.device}, but x {x.dtype} on {x.device}")
    if cost not in COSTS:
        raise InputError(f"cost is {cost!r}, not one of {', '.join(COSTS)}")
    form = "torch" if radius is not None else _form(backend, gamma, x)
    pairs = _check_lengths(lengths, bandwidth, B, N, y.shape[1])
    band, in_cells = _band(bandwidth)
    if form == "reference":
        return _reference(reference.pairwise(x, y, cost), pairs, gamma, band, in_cells).to(cpu.value_type(x))
    with_gradient = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    fast = -1 if radius is None else radius
    return _forward(x, y, pairs, cost, float(gamma), band, in_cells, fast, with_gradient, form)[0]


def _reference(costs: Tensor, pairs: Tensor | None, gamma: float, bandwidth: float, in_cells: bool) -> Tensor:
    own = cpu.pair_lengths(pairs, *costs.shape)
    inside = cpu.band(own, costs, bandwidth, in_cells) if bandwidth >= 0 else None
    values = reference.soft_dtw(costs, own, inside, gamma)
    if inside is not None:
        reached = values.detach().nan_to_num(posinf=cpu.NEVER)
        cpu.check_reached(reached, torch.arange(len(own)), own, gamma, bandwidth)
    return values.to(cpu.value_type(costs))


def _form(backend: str, gamma: float, table: Tensor) -> str:
    """The form for a tensor with the points of x, or the rows of the costs, on axis 1."""
    if not gamma >= 0:
        raise InputError(f"gamma is {gamma}, not at least 0")
    over = ""
    if not (table.is_cpu and torch.compiler.is_compiling()):  # where a comparison would only bind a free size
        over = f"x has {table.shape[1]} points, over {MOST_ROWS}" if table.shape[1] > MOST_ROWS else ""
    return OPERATOR.choose(table, backend=backend, no_triton=over)


def _band(bandwidth: int | float | None) -> tuple[float, bool]:
    return (-1.0, True) if bandwidth is None else (float(bandwidth), isinstance(bandwidth, int))


def _check_lengths(lengths: Lengths | None, bandwidth: int | float | None, B: int, N: int, M: int) -> Tensor | None:
    """The lengths as a tensor, after a check of them and of the band against them."""
    if bandwidth is not None and not bandwidth >= 0:
        raise InputError(f"bandwidth is {bandwidth}, not at least 0")
    pairs = None
    if lengths is not None:
        pairs = torch.as_tensor(lengths)
        if not pairs.numel():
            pairs = pairs.long().view(-1, 2)
        if pairs.shape != (B, 2) or pairs.dtype not in (torch.int32, torch.int64):
            raise InputError(f"lengths is {pairs.dtype} {list(pairs.shape)}, not integers [{B}, 2]")
        if torch.compiler.is_compiling() or type(pairs) is not Tensor:
            return pairs  # their values are not known
    for number, (n, m) in enumerate([(N, M)] * min(B, 1) if pairs is None else pairs.tolist()):
        if not (1 <= n <= N and 1 <= m <= M):
            raise InputError(f"lengths[{number}] is [{n}, {m}], not within [1, {N}] and [1, {M}]")
        if isinstance(bandwidth, int) and abs(n - m) > bandwidth:
            raise InputError(
                f"bandwidth is {bandwidth} cells, but pair {number} has {n} x {m} points: its last cell is outside",
                "Widen the band, give it as a fraction (a float), or resample the sequences to similar lengths.",
            )
    return pairs


@torch.library.custom_op("gated::dtw_fwd", mutates_args=())
def _forward(
    x: Tensor,
    y: Tensor,
    lengths: Tensor | None,
    cost: str,
    gamma: float,
    bandwidth: float,
    in_cells: bool,
    radius: int,
    with_gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    form = OPERATOR.form(backend)
    return cpu.forward(x, y, lengths, cost, gamma, bandwidth, in_cells, radius, with_gradient, form)


@_forward.register_fake
def _(
    x: Tensor,
    y: Tensor,
    lengths: Tensor | None,
    cost: str,
    gamma: float,
    bandwidth: float,
    in_cells: bool,
    radius: int,
    with_gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return cpu.empty_outputs(x, y, with_gradient)


@torch.library.custom_op("gated::dtw_cost_fwd", mutates_args=())
def _cost_forward(
    costs: Tensor,
    lengths: Tensor | None,
    gamma: float,
    bandwidth: float,
    in_cells: bool,
    with_gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return cpu.cost_forward(costs, lengths, gamma, bandwidth, in_cells, with_gradient, OPERATOR.form(backend))


@_cost_forward.register_fake
def _(
    costs: Tensor,
    lengths: Tensor | None,
    gamma: float,
    bandwidth: float,
    in_cells: bool,
    with_gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return cpu.empty_cost_outputs(costs, with_gradient)


@torch.library.custom_op("gated::dtw_bwd", mutates_args=())
def _backward(dvalues: Tensor, unit: Tensor) -> Tensor:
    return cpu.backward(dvalues, unit)


@_backward.register_fake
def _(dvalues: Tensor, unit: Tensor) -> Tensor:
    return torch.empty_like(unit)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.others = len(inputs) - (len(output) - 1)
    ctx.save_for_backward(*output[1:])


def _gradients(ctx: Any, dvalues: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad
    gradients = [
        _backward(dvalues, unit) if need else None for unit, need in zip(ctx.saved_tensors, wanted, strict=False)
    ]
    return *gradients, *(None,) * ctx.others


_forward.register_autograd(_gradients, setup_context=_setup)
_cost_forward.register_autograd(_gradients, setup_context=_setup)
