"""The gated delta rule on a GPU, in chunks of C tokens.

Three launches forward: the triangular inverse of each chunk, the walk that carries the state from chunk to chunk, the
outputs. Four backward: the first two again, now with the scores, the walk of the state's gradient against time, and the
gradients of each chunk.

Between two tokens of a chunk lies a sum of log decays over exactly the tokens between them, never a difference of two
sums: no digits are lost where gates are strong, and g = -inf erases.

Legend: N chunks of all sequences, H heads, K key width, V value width, BK and BV their tiles. A row is a token and
head. Values prefixed b_ are tiles. What passes through memory: X and the scores A ``[N, H, C, C]``; ``written`` and the
gradient x, like v; the states that enter the chunks and the gradients of those that leave them, ``[N, H, K, V]``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from toolkit.kernels._common.triton import dot_cases, dot_options, load_float32, store_rounded

# Tokens of a chunk and greatest K, for half types and for float32, whose products are three of tf32: what fits the
# registers. Tiles of 64 rows are out: sm_90 miscompiles products of their transposed accumulators (triton 6124).
CHUNK = {False: 32, True: 16}
WIDEST = {False: 128, True: 64}
LOG2_E = tl.constexpr(1.4426950408889634)
ERASES = tl.constexpr(-1e4)  # 2^-10000 is 0; sums of -inf would make NaN
NORM_EPS = tl.constexpr(1e-6)


@triton.jit
def _dot(x, y, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """Matrix product in float32 of operands in the type DOT."""
    return tl.dot(x.to(DOT), y.to(DOT), input_precision=PRECISION)


@triton.jit
def _chunk(bounds, chunk, h, H, C: tl.constexpr):
    """The chunk's rows, counted over all tokens and heads, and which of them are inside its sequence."""
    token = tl.load(bounds + 2 * chunk) + tl.arange(0, C)
    return token * H + h, token < tl.load(bounds + 2 * chunk + 1)


@triton.jit
def _tile(x, rows, inside, columns, D):
    """``[C, columns]`` of a tensor ``[tokens, H, D]``."""
    mask = inside[:, None] & (columns < D)[None, :]
    return load_float32(x, rows[:, None] * D + columns[None, :], mask)


@triton.jit
def _normalised(x, NORM: tl.constexpr):
    """x, divided by the root of its sum of squares with NORM, and what it was multiplied with."""
    root = tl.rsqrt(tl.sum(x * x, 1) + NORM_EPS) if NORM else tl.full([x.shape[0]], 1.0, tl.float32)
    return x * root[:, None], root


@triton.jit
def _log_gates(g, rows, inside):
    """Log decays to the base 2."""
    return tl.maximum(load_float32(g, rows, inside), ERASES) * LOG2_E


@triton.jit
def _edges(g, rows, inside, H, C: tl.constexpr):
    """The decay from the left edge to each token, itself included; from each token to the right edge; of the chunk."""
    i = tl.arange(0, C)
    b_g = _log_gates(g, rows, inside)
    after = _log_gates(g, rows + H, (i + 1 < C) & _next_inside(inside, C))
    return tl.exp2(tl.cumsum(b_g, 0)), tl.exp2(tl.cumsum(after, 0, reverse=True)), tl.exp2(tl.sum(b_g, 0))


@triton.jit
def _next_inside(inside, C: tl.constexpr):
    """Whether the token after each is inside: the tokens inside come first."""
    return tl.arange(0, C) + 1 < tl.sum(inside.to(tl.int32), 0)


@triton.jit
def _decays(b_g, C: tl.constexpr):
    """``e^(g_(j+1) + ... + g_i)`` at ``[i, j]``, 0 for j > i."""
    i = tl.arange(0, C)
    between = tl.cumsum(tl.where(i[:, None] > i[None, :], b_g[:, None], 0.0), 0)
    return tl.where(i[:, None] >= i[None, :], tl.exp2(between), 0.0)


@triton.jit
def _inverse_kernel(
    q, k, g, beta, X, A, bounds, H, K: tl.constexpr, NORM: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """``X = (I + strict_lower(diag(beta) K K^T * D))^-1``, and the scores A unless that is None.

    The inverses of two diagonal blocks make that of their union: stable, as powers of the strict part are not. These
    products are exact to float32 for every type of the inputs.
    """
    chunk, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, inside = _chunk(bounds, chunk, h, H, C)
    d = tl.arange(0, BK)
    b_k, _ = _normalised(_tile(k, rows, inside, d, K), NORM)
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    b_D = _decays(_log_gates(g, rows, inside), C)
    if A is not None:
        b_q, _ = _normalised(_tile(q, rows, inside, d, K), NORM)
        b_A = _dot(b_q, tl.trans(b_k), DOT, PRECISION) * b_D
        store_rounded(A, ((chunk * H + h) * C + i) * C + j, b_A, (i < C) & (j < C))
    b_M = _dot(b_k, tl.trans(b_k), DOT, PRECISION) * b_D * load_float32(beta, rows, inside)[:, None]
    b_X = tl.where(i == j, 1.0, 0.0) - tl.where(((i & 1) == 1) & (j == i - 1), b_M, 0.0)
    size = 2
    while size < C:
        below = tl.where(((i // size & 1) == 1) & (j // size == i // size - 1), b_M, 0.0)
        b_X -= _dot(b_X, _dot(below, b_X, tl.float32, EXACT), tl.float32, EXACT)
        size *= 2
    tl.store(X + ((chunk * H + h) * C + i) * C + j, b_X)


@triton.jit
def _states_kernel(
    k, v, g, beta, X, first, written, states, last, bounds, chunks, H, K: tl.constexpr, V: tl.constexpr,
    NORM: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk with time over the chunks of one sequence and head, for a tile of V."""
    sequence, h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0) % H
    i, d, e = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    cells, exists = d[:, None] * V + e[None, :], (d < K)[:, None] & (e < V)[None, :]
    b_S = load_float32(first, (sequence * H + h) * K * V + cells, exists)
    for chunk in range(tl.load(chunks + sequence), tl.load(chunks + sequence + 1)):
        store_rounded(states, (chunk * H + h) * K * V + cells, b_S, exists)
        rows, inside = _chunk(bounds, chunk, h, H, C)
        b_k, _ = _normalised(_tile(k, rows, inside, d, K), NORM)
        b_beta = load_float32(beta, rows, inside)
        arrived, coming, passed = _edges(g, rows, inside, H, C)
        b_X = tl.load(X + ((chunk * H + h) * C + i[:, None]) * C + i[None, :])
        rest = b_beta[:, None] * _tile(v, rows, inside, e, V)
        rest -= _dot(b_k * (arrived * b_beta)[:, None], b_S, DOT, PRECISION)
        b_w = _dot(b_X, rest, DOT, PRECISION)
        store_rounded(written, rows[:, None] * V + e[None, :], b_w, inside[:, None] & (e < V)[None, :])
        b_S = passed * b_S + _dot(tl.trans(b_k * coming[:, None]), b_w, DOT, PRECISION)
    store_rounded(last, (sequence * H + h) * K * V + cells, b_S, exists)


@triton.jit
def _outputs_kernel(
    q, k, g, written, states, o, bounds, scale, H, K: tl.constexpr, V: tl.constexpr, NORM: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunk, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, inside = _chunk(bounds, chunk, h, H, C)
    d = tl.arange(0, BK)
    b_q, _ = _normalised(_tile(q, rows, inside, d, K), NORM)
    b_k, _ = _normalised(_tile(k, rows, inside, d, K), NORM)
    b_g = _log_gates(g, rows, inside)
    b_A = _dot(b_q, tl.trans(b_k), DOT, PRECISION) * _decays(b_g, C)
    b_q *= tl.exp2(tl.cumsum(b_g, 0))[:, None]
    for tile in range(tl.cdiv(V, BV)):
        e = tile * BV + tl.arange(0, BV)
        exists = (d < K)[:, None] & (e < V)[None, :]
        b_S = load_float32(states, (chunk * H + h) * K * V + d[:, None] * V + e[None, :], exists)
        b_o = _dot(b_A, _tile(written, rows, inside, e, V), DOT, PRECISION) + _dot(b_q, b_S, DOT, PRECISION)
        store_rounded(o, rows[:, None] * V + e[None, :], b_o * scale, inside[:, None] & (e < V)[None, :])


@triton.jit
def _dstates_kernel(
    q, k, g, beta, X, A, do, dlast, x, dstates, dfirst, bounds, chunks, scale, H, K: tl.constexpr, V: tl.constexpr,
    NORM: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk against time over the chunks of one sequence and head, for a tile of V."""
    sequence, h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0) % H
    i, d, e = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    cells, exists = d[:, None] * V + e[None, :], (d < K)[:, None] & (e < V)[None, :]
    b_dS = load_float32(dlast, (sequence * H + h) * K * V + cells, exists)
    begin, end = tl.load(chunks + sequence), tl.load(chunks + sequence + 1)
    for step in range(end - begin):
        chunk = end - 1 - step
        store_rounded(dstates, (chunk * H + h) * K * V + cells, b_dS, exists)
        rows, inside = _chunk(bounds, chunk, h, H, C)
        b_q, _ = _normalised(_tile(q, rows, inside, d, K), NORM)
        b_k, _ = _normalised(_tile(k, rows, inside, d, K), NORM)
        arrived, coming, passed = _edges(g, rows, inside, H, C)
        b_do = _tile(do, rows, inside, e, V) * scale
        transposed = ((chunk * H + h) * C + i[None, :]) * C + i[:, None]
        dwritten = _dot(tl.load(A + transposed), b_do, DOT, PRECISION)
        dwritten += _dot(b_k * coming[:, None], b_dS, DOT, PRECISION)
        b_x = _dot(tl.load(X + transposed), dwritten, DOT, PRECISION)
        store_rounded(x, rows[:, None] * V + e[None, :], b_x, inside[:, None] & (e < V)[None, :])
        b_dS = passed * b_dS + _dot(tl.trans(b_q * arrived[:, None]), b_do, DOT, PRECISION)
        k_in = b_k * (arrived * load_float32(beta, rows, inside))[:, None]
        b_dS -= _dot(tl.trans(k_in), b_x, DOT, PRECISION)
    store_rounded(dfirst, (sequence * H + h) * K * V + cells, b_dS, exists)


@triton.jit
def _gradients_kernel(
    do, q, k, v, g, beta, written, states, x, dstates, dq, dk, dv, dg, dbeta, bounds, scale, H, K: tl.constexpr,
    V: tl.constexpr, NORM: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients of one chunk and head; names as in ``cpu.py``."""
    chunk, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, inside = _chunk(bounds, chunk, h, H, C)
    d = tl.arange(0, BK)
    b_beta = load_float32(beta, rows, inside)
    b_dA = tl.zeros([C, C], tl.float32)
    b_dM = tl.zeros([C, C], tl.float32)
    dq_in = tl.zeros([C, BK], tl.float32)
    dk_in = tl.zeros([C, BK], tl.float32)
    dk_out = tl.zeros([C, BK], tl.float32)
    b_dbeta = tl.zeros([C], tl.float32)
    through = tl.zeros([BK], tl.float32)
    for tile in range(tl.cdiv(V, BV)):
        e = tile * BV + tl.arange(0, BV)
        cells = (chunk * H + h) * K * V + d[None, :] * V + e[:, None]  # transposed
        exists = (e < V)[:, None] & (d < K)[None, :]
        b_do = _tile(do, rows, inside, e, V) * scale
        b_w = _tile(written, rows, inside, e, V)
        b_x = _tile(x, rows, inside, e, V)
        b_dA += _dot(b_do, tl.trans(b_w), DOT, PRECISION)
        b_dM -= _dot(b_x, tl.trans(b_w), DOT, PRECISION)
        b_S = load_float32(states, cells, exists)
        dq_in += _dot(b_do, b_S, DOT, PRECISION)
        dk_in -= _dot(b_x, b_S, DOT, PRECISION)
        b_dS = load_float32(dstates, cells, exists)
        through += tl.sum(b_S * b_dS, 0)
        dk_out += _dot(b_w, b_dS, DOT, PRECISION)
        b_dbeta += tl.sum(b_x * _tile(v, rows, inside, e, V), 1)
        store_rounded(dv, rows[:, None] * V + e[None, :], b_beta[:, None] * b_x, inside[:, None] & (e < V)[None, :])

    b_q, q_root = _normalised(_tile(q, rows, inside, d, K), NORM)
    b_k, k_root = _normalised(_tile(k, rows, inside, d, K), NORM)
    arrived, coming, passed = _edges(g, rows, inside, H, C)
    b_D = _decays(_log_gates(g, rows, inside), C)
    b_dA *= b_D
    below = tl.arange(0, C)[:, None] > tl.arange(0, C)[None, :]
    b_dM = tl.where(below, b_dM * b_D, 0.0)
    read = tl.sum(b_k * dk_in, 1) * arrived
    pairs = b_dM * _dot(b_k, tl.trans(b_k), DOT, PRECISION)
    store_rounded(dbeta, rows, b_dbeta + tl.sum(pairs, 1) + read, inside)

    pairs = pairs * b_beta[:, None] + b_dA * _dot(b_q, tl.trans(b_k), DOT, PRECISION)
    b_dg = tl.sum(tl.where(below, tl.cumsum(pairs, 0, reverse=True), 0.0), 1)
    b_dg += tl.cumsum(tl.sum(b_q * dq_in, 1) * arrived + b_beta * read, 0, reverse=True)
    leaves = tl.sum(b_k * dk_out, 1) * coming  # summed over earlier tokens alone: those may be tiny next to the own one
    b_dg += tl.sum(tl.where(below, leaves[None, :], 0.0), 1) + passed * tl.sum(through, 0)
    store_rounded(dg, rows, b_dg, inside)

    b_dM *= b_beta[:, None]
    b_dq = dq_in * arrived[:, None] + _dot(b_dA, b_k, DOT, PRECISION)
    b_dk = dk_out * coming[:, None] + dk_in * (arrived * b_beta)[:, None]
    b_dk += _dot(tl.trans(b_dA), b_q, DOT, PRECISION) + _dot(b_dM + tl.trans(b_dM), b_k, DOT, PRECISION)
    if NORM:
        b_dq = (b_dq - b_q * tl.sum(b_q * b_dq, 1)[:, None]) * q_root[:, None]
        b_dk = (b_dk - b_k * tl.sum(b_k * b_dk, 1)[:, None]) * k_root[:, None]
    mask = inside[:, None] & (d < K)[None, :]
    store_rounded(dq, rows[:, None] * K + d[None, :], b_dq, mask)
    store_rounded(dk, rows[:, None] * K + d[None, :], b_dk, mask)


def forward(*inputs: Any) -> tuple[Tensor, ...]:
    """Outputs and final states for the inputs of ``cpu.forward``; the backward needs no more than the inputs."""
    launch = _Launch(*inputs[:-1])
    last = launch.walk(scores=False)
    return launch.outputs(), last, last.new_empty(0), last.new_empty(0)


def backward(do: Tensor | None, dlast: Tensor | None, entering: Tensor, written: Tensor, *inputs: Any) -> list[Tensor]:
    """Gradients of q, k, v, g, beta, and of the initial states where there are any; nothing kept is read."""
    launch = _Launch(*inputs[:-1])
    launch.walk(scores=True)
    found = launch.gradients(do, dlast)
    return [grad.to(x.dtype) for grad, x in zip(found, inputs[:6], strict=True) if x is not None]


class _Launch:
    """Inputs of one type, and the launches over them."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        scale: float,
        qk_l2norm: bool,
    ):
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in (q, k, v)))
        self.q, self.k, self.v = (x.to(dtype).contiguous() for x in (q, k, v))
        self.g, self.beta = (x.float().contiguous() for x in (g, beta))
        B, T, self.H, self.K = q.shape
        self.V, self.scale, self.out_dtype = v.shape[-1], scale, v.dtype
        lengths = (0, *(T * (b + 1) for b in range(B))) if cu_seqlens is None else tuple(cu_seqlens.tolist())
        self.config = _config(dtype, self.K, self.V, qk_l2norm)
        self.bounds, self.chunks = _cut(lengths, self.config["C"], str(q.device))
        self.first = self.state(initial_state)

    def state(self, value: Tensor | None) -> Tensor:
        shape = (len(self.chunks) - 1, self.H, self.K, self.V)
        return self.g.new_zeros(shape) if value is None else value.float().contiguous()

    def per_chunk(self) -> Tensor:
        return self.v.new_empty(len(self.bounds), self.H, self.K, self.V)

    def run(self, kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
        if 0 not in grid and self.q.numel():
            names = kernel.arg_names[len(arguments) :]
            options = _options(kernel, self.v.dtype is torch.float32, self.K, torch.version.hip is not None)
            kernel[grid](*arguments, **{name: self.config[name] for name in names}, **options)

    def walk(self, scores: bool) -> Tensor:
        """The inverses and the states; returns those that the sequences end with."""
        last, self.states, self.written = torch.empty_like(self.first), self.per_chunk(), torch.empty_like(self.v)
        self.X = self.g.new_empty(len(self.bounds), self.H, self.config["C"], self.config["C"])
        self.A = torch.empty_like(self.X, dtype=self.v.dtype) if scores else None
        by_chunk, by_sequence = self.grids()
        gates = (self.g, self.beta)
        self.run(_inverse_kernel, by_chunk, self.q, self.k, *gates, self.X, self.A, self.bounds, self.H)
        results = (self.written, self.states, last, self.bounds, self.chunks)
        self.run(_states_kernel, by_sequence, self.k, self.v, *gates, self.X, self.first, *results, self.H)
        return last if self.q.numel() else self.first.clone()

    def grids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tiles = triton.cdiv(self.V, self.config["BV"])
        return (len(self.bounds), self.H), ((len(self.chunks) - 1) * self.H, tiles)  # only axis 0 may be long

    def outputs(self) -> Tensor:
        o = torch.empty_like(self.v)
        inputs = (self.q, self.k, self.g, self.written, self.states)
        self.run(_outputs_kernel, self.grids()[0], *inputs, o, self.bounds, self.scale, self.H)
        return o.to(self.out_dtype)

    def gradients(self, do: Tensor | None, dlast: Tensor | None) -> list[Tensor]:
        do = torch.zeros_like(self.v) if do is None else do.to(self.v.dtype).contiguous()
        dlast = self.state(dlast)
        x, dstates, dfirst = torch.empty_like(self.written), self.per_chunk(), torch.empty_like(dlast)
        grads = [torch.empty_like(y) for y in (self.q, self.k, self.v, self.g, self.beta)]
        by_chunk, by_sequence = self.grids()
        gates, results = (self.g, self.beta), (x, dstates, dfirst, self.bounds, self.chunks)
        inputs = (self.q, self.k, *gates, self.X, self.A, do, dlast)
        self.run(_dstates_kernel, by_sequence, *inputs, *results, self.scale, self.H)
        kept = (self.written, self.states, x, dstates, *grads, self.bounds)
        self.run(_gradients_kernel, by_chunk, do, self.q, self.k, self.v, *gates, *kept, self.scale, self.H)
        return [*grads, dfirst if self.q.numel() else dlast.clone()]


@functools.lru_cache(maxsize=64)
def _cut(lengths: tuple[int, ...], C: int, device: str) -> tuple[Tensor, Tensor]:
    """First token of each chunk and first beyond its sequence ``[N, 2]``; first chunk of each sequence, then N."""
    bounds, chunks = [], [0]
    for begin, end in itertools.pairwise(lengths):
        bounds += [(token, end) for token in range(begin, end, C)]
        chunks.append(len(bounds))
    return torch.tensor(bounds, device=device).view(-1, 2), torch.tensor(chunks, device=device)


def _config(dtype: torch.dtype, K: int, V: int, qk_l2norm: bool) -> dict[str, Any]:
    C = CHUNK[dtype is torch.float32]
    tiles = {"C": C, "BK": max(16, triton.next_power_of_2(K)), "BV": min(C, max(16, triton.next_power_of_2(V)))}
    exact = "ieee" if torch.version.hip else "tf32x3"
    return {"K": K, "V": V, "NORM": qk_l2norm, **tiles, **dot_options(dtype), "EXACT": exact}


def _options(kernel: Any, float32: bool, K: int, amd: bool) -> dict[str, int]:
    many = kernel is _gradients_kernel and (float32 or K > 64) and not amd  # there 8 warps leave each 256 registers
    return {"num_warps": 8 if many else 4, "num_stages": 1 if float32 else 2}


def aot_cases() -> Iterator[dict[str, Any]]:
    """What is launched at the greatest width for a type, with and without normalisation."""
    kernels = (_inverse_kernel, _states_kernel, _outputs_kernel, _dstates_kernel, _gradients_kernel)
    float32 = {"g", "beta", "X", "first", "last", "dlast", "dfirst", "dg", "dbeta"}
    types = {"H": "i32", "scale": "fp32", "bounds": "*i64", "chunks": "*i64", **dict.fromkeys(float32, "*fp32")}
    for dtype, dot, targets in dot_cases():
        wide = dtype == "fp32"
        width = WIDEST[wide]
        for fn, norm, target in itertools.product(kernels, (False, True), targets):
            exact = {"EXACT": "ieee" if target == "gfx942" else "tf32x3"}
            config = {**_config(torch.float32 if wide else torch.bfloat16, width, width, norm), **dot, **exact}
            for scores in (False, True) if fn is _inverse_kernel else (True,):
                constants = {name: config[name] for name in fn.arg_names if name in config}
                constants |= {} if scores else {"A": None}
                yield {
                    "name": f"{fn.__name__[1:-7]} {dtype} K=V={width}"
                    + (" norm" if norm else "")
                    + ("" if scores else " without scores"),
                    "fn": fn,
                    "signature": {n: types.get(n, f"*{dtype}") for n in fn.arg_names if n not in constants},
                    "constexprs": constants,
                    "options": _options(fn, wide, width, target == "gfx942"),
                    "targets": [target],
                }
