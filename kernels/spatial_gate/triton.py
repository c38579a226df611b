"""The spatial gating unit on a GPU: statistics of the norm, then normalising, mixing and gating in one tiled kernel.

The backward computes the mixed values again. Sums over many programs are stored apart and added in a fixed order.

Legend: T tokens in all, n tokens of the mixed axis, C channels. A group is n tokens that are mixed, ``inner`` tokens
apart in memory: 1 for positions in a cell, P for cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from toolkit.kernels._common.triton import dot_cases, dot_options, load_float32, store_rounded

CHANNELS = 32  # of a tile of the mixing kernels
# The mixed tokens of a tile BM; those of one step of the sum over tokens BK.
MIX = (
    (16, {"BM": 16, "BK": 16, "num_warps": 2, "num_stages": 1}),
    (32, {"BM": 32, "BK": 16, "num_warps": 8, "num_stages": 1}),
    (None, {"BM": 64, "BK": 16, "num_warps": 8, "num_stages": 1}),
)
# The square of the mixing kernel's gradient that a program sums.
SUM = (
    (16, {"BM": 16, "num_warps": 2, "num_stages": 1}),
    (None, {"BM": 32, "num_warps": 4, "num_stages": 1}),
)
# Rows BR and channels BC of a tile of the norm's kernels.
NORM = (
    (32, {"BR": 32, "BC": 32, "num_warps": 4, "num_stages": 1}),
    (None, {"BR": 16, "BC": 128, "num_warps": 4, "num_stages": 1}),
)
PROGRAMS = 512  # that share the sum of the mixing kernel's gradient


@triton.jit
def _statistics_kernel(x, statistics, eps, T, C, BR: tl.constexpr, BC: tl.constexpr):
    """Mean and inverse deviation over channels, ``statistics [2, T]``."""
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    v = row[:, None] * (2 * C) + C
    total = tl.zeros([BR, BC], tl.float32)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)[None, :]
        total += load_float32(x, v + c, (row[:, None] < T) & (c < C))
    mean = tl.sum(total, 1) / C
    total = tl.zeros([BR, BC], tl.float32)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)[None, :]
        inside = (row[:, None] < T) & (c < C)
        centred = tl.where(inside, load_float32(x, v + c, inside) - mean[:, None], 0.0)
        total += centred * centred
    tl.store(statistics + row, mean, mask=row < T)
    tl.store(statistics + T + row, 1 / tl.sqrt(tl.sum(total, 1) / C + eps), mask=row < T)


@triton.jit
def _tokens(group, i, n, inner):
    """Which tokens are those that the group mixes."""
    return (group // inner) * n * inner + group % inner + i.to(tl.int64) * inner


@triton.jit
def _normalised(x, statistics, norm_weight, norm_bias, token, exists, c, T, C):
    """The norm of v at the tokens (axis 0) and channels (axis 1); 0 outside."""
    v = load_float32(x, token[:, None] * (2 * C) + C + c[None, :], exists[:, None] & (c < C)[None, :])
    mean, rstd = load_float32(statistics, token, exists), load_float32(statistics + T, token, exists)
    weight, bias = load_float32(norm_weight, c, c < C), load_float32(norm_bias, c, c < C)
    normalised = (v - mean[:, None]) * rstd[:, None] * weight[None, :] + bias[None, :]
    return tl.where(exists[:, None], normalised, 0.0)


@triton.jit
def _dmixed(dy, x, token, exists, c, C):
    """The gradient of the mixed values, dy u; 0 outside."""
    inside = exists[:, None] & (c < C)[None, :]
    u = load_float32(x, token[:, None] * (2 * C) + c[None, :], inside)
    return u * load_float32(dy, token[:, None] * C + c[None, :], inside)


@triton.jit
def _mix_fwd_kernel(
    x, kernel, bias, norm_weight, norm_bias, statistics, y, T, n, inner, C,
    BM: tl.constexpr, BK: tl.constexpr, CHANNELS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    j = tl.program_id(2) * BM + tl.arange(0, BM)
    mixed = tl.zeros([BM, CHANNELS], tl.float32)
    for k0 in range(0, n, BK):
        k = k0 + tl.arange(0, BK)
        v = _normalised(x, statistics, norm_weight, norm_bias, _tokens(group, k, n, inner), k < n, c, T, C)
        weights = load_float32(kernel, k[None, :] * n + j[:, None], (k < n)[None, :] & (j < n)[:, None])
        mixed += tl.dot(weights.to(DOT), v.to(DOT), input_precision=PRECISION)
    factor = mixed + load_float32(bias, j, j < n)[:, None] + 1
    token, inside = _tokens(group, j, n, inner)[:, None], (j < n)[:, None] & (c < C)[None, :]
    u = load_float32(x, token * (2 * C) + c[None, :], inside)
    store_rounded(y, token * C + c[None, :], u * factor, inside)


@triton.jit
def _mix_bwd_kernel(
    dy, x, kernel, bias, norm_weight, norm_bias, statistics, dx, dnormalised, T, n, inner, C,
    BM: tl.constexpr, BK: tl.constexpr, CHANNELS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of u and of the norm's output, from the mixed values of the same tokens and from W dm."""
    group = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    j = tl.program_id(2) * BM + tl.arange(0, BM)
    mixed = tl.zeros([BM, CHANNELS], tl.float32)
    dv = tl.zeros([BM, CHANNELS], tl.float32)
    for k0 in range(0, n, BK):
        k = k0 + tl.arange(0, BK)
        token, square = _tokens(group, k, n, inner), (k < n)[None, :] & (j < n)[:, None]
        v = _normalised(x, statistics, norm_weight, norm_bias, token, k < n, c, T, C)
        weights = load_float32(kernel, k[None, :] * n + j[:, None], square)
        mixed += tl.dot(weights.to(DOT), v.to(DOT), input_precision=PRECISION)
        dm = _dmixed(dy, x, token, k < n, c, C)
        weights = load_float32(kernel, j[:, None] * n + k[None, :], square)
        dv += tl.dot(weights.to(DOT), dm.to(DOT), input_precision=PRECISION)
    factor = mixed + load_float32(bias, j, j < n)[:, None] + 1
    token, inside = _tokens(group, j, n, inner)[:, None], (j < n)[:, None] & (c < C)[None, :]
    du = load_float32(dy, token * C + c[None, :], inside) * factor
    store_rounded(dx, token * (2 * C) + c[None, :], du, inside)
    tl.store(dnormalised + token * C + c[None, :], dv, mask=inside)


@triton.jit
def _weights_bwd_kernel(
    dy, x, norm_weight, norm_bias, statistics, dkernel, dbias, T, n, inner, C, groups,
    BM: tl.constexpr, CHANNELS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """This program's share of ``dW = sum v^ dm^T`` and of ``sum dm``, over groups and channels."""
    i = tl.program_id(1) * BM + tl.arange(0, BM)
    j = tl.program_id(2) * BM + tl.arange(0, BM)
    share, shares = tl.program_id(0), tl.num_programs(0)
    tiles = tl.cdiv(C, CHANNELS)
    weights = tl.zeros([BM, BM], tl.float32)
    offsets = tl.zeros([BM], tl.float32)
    for item in range(share, groups * tiles, shares):
        group = (item // tiles).to(tl.int64)
        c = (item % tiles) * CHANNELS + tl.arange(0, CHANNELS)
        v = _normalised(x, statistics, norm_weight, norm_bias, _tokens(group, i, n, inner), i < n, c, T, C)
        dm = _dmixed(dy, x, _tokens(group, j, n, inner), j < n, c, C)
        weights += tl.dot(v.to(DOT), tl.trans(dm.to(DOT)), input_precision=PRECISION)
        offsets += tl.sum(dm, 1)
    square = (i < n)[:, None] & (j < n)[None, :]
    tl.store(dkernel + (share.to(tl.int64) * n + i[:, None]) * n + j[None, :], weights, mask=square)
    tl.store(dbias + share.to(tl.int64) * n + j, offsets, mask=(j < n) & (tl.program_id(1) == 0))


@triton.jit
def _norm_bwd_kernel(
    dnormalised, x, norm_weight, statistics, dx, dnorm_weight, dnorm_bias, T, C, BR: tl.constexpr, BC: tl.constexpr
):
    """The gradient of v, and this program's share of the sums over tokens for the norm's weight and bias."""
    program = tl.program_id(0).to(tl.int64)
    row = program * BR + tl.arange(0, BR)
    exists = row < T
    mean, rstd = load_float32(statistics, row, exists)[:, None], load_float32(statistics + T, row, exists)[:, None]
    v, d = row[:, None] * (2 * C) + C, row[:, None] * C
    along_one, along_v = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.float32)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        inside = exists[:, None] & (c < C)[None, :]
        scaled = load_float32(dnormalised, d + c[None, :], inside) * load_float32(norm_weight, c, c < C)[None, :]
        along_one += scaled
        along_v += scaled * (load_float32(x, v + c[None, :], inside) - mean) * rstd
    along_one_mean, along_v_mean = (tl.sum(along_one, 1) / C)[:, None], (tl.sum(along_v, 1) / C)[:, None]
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        inside = exists[:, None] & (c < C)[None, :]
        dv = load_float32(dnormalised, d + c[None, :], inside)
        unit = (load_float32(x, v + c[None, :], inside) - mean) * rstd
        scaled = dv * load_float32(norm_weight, c, c < C)[None, :]
        store_rounded(dx, v + c[None, :], rstd * (scaled - along_one_mean - unit * along_v_mean), inside)
        tl.store(dnorm_weight + program * C + c, tl.sum(dv * unit, 0), mask=c < C)
        tl.store(dnorm_bias + program * C + c, tl.sum(dv, 0), mask=c < C)


def _config(table: Any, size: int) -> dict[str, int]:
    return next(config for most, config in table if most is None or size <= most)


def _sizes(x: Tensor, axis: int) -> tuple[int, int, int, int, int]:
    """T, n, inner, C and the number of groups."""
    B, G, P, C = *x.shape[:3], x.shape[3] // 2
    return (B * G * P, P, 1, C, B * G) if axis == 2 else (B * G * P, G, P, C, B * P)


def forward(
    x: Tensor, kernel: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, axis: int, eps: float
) -> tuple[Tensor, Tensor]:
    """y, and mean and inverse deviation of every token, ``[2, B, G, P]`` in float32."""
    T, n, inner, C, groups = _sizes(x, axis)
    y = torch.empty(*x.shape[:-1], C, dtype=x.dtype, device=x.device)
    statistics = torch.empty(2, *x.shape[:-1], device=x.device)
    if T:
        mix, norm = _config(MIX, n), _config(NORM, C)
        _statistics_kernel[(triton.cdiv(T, norm["BR"]),)](x, statistics, eps, T, C, **norm)
        grid = groups, triton.cdiv(C, CHANNELS), triton.cdiv(n, mix["BM"])
        _mix_fwd_kernel[grid](
            x, kernel, bias, norm_weight, norm_bias, statistics, y, T, n, inner, C,
            CHANNELS=CHANNELS, **mix, **dot_options(x.dtype),
        )  # fmt: skip
    return y, statistics


def backward(
    dy: Tensor,
    statistics: Tensor,
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    axis: int,
    eps: float,
) -> list[Tensor]:
    """Gradients of x, and of the parameters in float32."""
    T, n, inner, C, groups = _sizes(x, axis)
    dx = torch.empty_like(x)
    if not T:
        return [dx, *(torch.zeros(w.shape, device=x.device) for w in (kernel, bias, norm_weight, norm_bias))]
    mix, part, norm, dot = _config(MIX, n), _config(SUM, n), _config(NORM, C), dot_options(x.dtype)
    channels, rows = triton.cdiv(C, CHANNELS), triton.cdiv(T, norm["BR"])

    dnormalised = torch.empty(*x.shape[:-1], C, device=x.device)
    _mix_bwd_kernel[(groups, channels, triton.cdiv(n, mix["BM"]))](
        dy, x, kernel, bias, norm_weight, norm_bias, statistics, dx, dnormalised, T, n, inner, C,
        CHANNELS=CHANNELS, **mix, **dot,
    )  # fmt: skip
    squares = triton.cdiv(n, part["BM"])
    shares = min(groups * channels, triton.cdiv(PROGRAMS, squares * squares))
    dkernel, dbias = (torch.empty(shares, *w.shape, device=x.device) for w in (kernel, bias))
    _weights_bwd_kernel[(shares, squares, squares)](
        dy, x, norm_weight, norm_bias, statistics, dkernel, dbias, T, n, inner, C, groups,
        CHANNELS=CHANNELS, **part, **dot,
    )  # fmt: skip
    dnorm_weight, dnorm_bias = (torch.empty(rows, C, device=x.device) for _ in range(2))
    _norm_bwd_kernel[(rows,)](dnormalised, x, norm_weight, statistics, dx, dnorm_weight, dnorm_bias, T, C, **norm)
    return [dx, *(parts.sum(0) for parts in (dkernel, dbias, dnorm_weight, dnorm_bias))]


def aot_cases() -> Iterator[dict[str, Any]]:
    """Every specialisation that ``forward`` and ``backward`` launch, in bf16 and float32, parameters in float32."""
    float32 = {"kernel", "bias", "norm_weight", "norm_bias", "statistics", "dnormalised"}
    float32 |= {"dkernel", "dbias", "dnorm_weight", "dnorm_bias"}
    for dtype, dot, targets in dot_cases():
        dot = {"CHANNELS": CHANNELS, **dot}
        kernels = [(_mix_fwd_kernel, MIX, dot), (_mix_bwd_kernel, MIX, dot), (_weights_bwd_kernel, SUM, dot)]
        kernels += [(_statistics_kernel, NORM, {}), (_norm_bwd_kernel, NORM, {})]
        for fn, table, constants in kernels:
            for most, config in table:
                constexprs = {k: v for k, v in config.items() if k.isupper()} | constants
                sizes = {"eps": "fp32", **dict.fromkeys(("T", "n", "inner", "C", "groups"), "i32")}
                names = [name for name in fn.arg_names if name not in constexprs]
                yield {
                    "name": f"{fn.__name__[1:-7]} {'C' if table is NORM else 'n'} {most or 'any'} {dtype}",
                    "fn": fn,
                    "signature": {name: sizes.get(name, "*fp32" if name in float32 else f"*{dtype}") for name in names},
                    "constexprs": constexprs,
                    "options": {k: v for k, v in config.items() if k.islower()},
                    "targets": targets,
                }
