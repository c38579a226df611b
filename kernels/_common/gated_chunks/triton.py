"""Triton kernels of linear attention with a decay per key channel, in one direction of time or in both at once.

``states_kernel`` finds the states that enter each chunk, and their gradients; ``chunk_kernel`` the outputs, and the
gradient of v; ``gradients_kernel`` those of q, k and the gates. A chunk's scores never leave the chip.
``gla/triton.py`` launches them.

No decay is ever a difference of sums or a quotient. Inside a chunk the tokens form a binary tree: at level n, halves
of blocks of 2^(n+1) tokens meet, and the decay between two tokens that meet is what the asking token has ``arrived``
through, from the middle of the block to itself, plus what was ``coming`` to the middle after the answering one. Both
are sums of log decays, at most 0, so their exponentials are in [0, 1]; g = -inf erases.

Legend: C tokens of a chunk, K key width, V value width, BK and BV their tiles, T tokens and NC chunks of a sequence,
NC_ALL chunks of all. Packed sequences have ``bounds``, ``chunks_before``, and the ``starts`` and ``ends`` of their
chunks instead of T and NC. g0 are the log decays of the direction of time, g1 (None: there is one direction) those of
the direction against it. States are ``[kinds, chunks, H, K, V]``. Values prefixed b_ are tiles. Products round their
operands to DOT. Masks are made anew in each level, because the compiler keeps what does not change in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from toolkit.kernels._common.triton import load_float32, store_rounded

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _dot(x, y, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """Matrix product in float32 of operands in the type DOT."""
    return tl.dot(x.to(DOT), y.to(DOT), input_precision=PRECISION)


@triton.jit
def _load_gates(g, offsets, mask):
    """Log decays to the base 2."""
    return load_float32(g, offsets, mask) * LOG2_E


@triton.jit
def _chunk_bounds(chunk, starts, ends, T, NC, C: tl.constexpr):
    """First token of a chunk and first token beyond its sequence, counted over the whole batch."""
    if starts is None:
        start = chunk // NC * T + chunk % NC * C
        end = (chunk // NC + 1) * T
    else:
        start = tl.load(starts + chunk)
        end = tl.load(ends + chunk)
    return start, end


@triton.jit
def _next_level(arrived, coming, level, AGAINST: tl.constexpr, C: tl.constexpr):
    """Sums inside blocks of 2^level tokens become sums inside blocks of twice as many.

    The total of a token's sibling block stands in ``arrived``, in the row that the direction reaches last.
    """
    r = tl.arange(0, C)[:, None]
    sibling = (r ^ (1 << level)) >> level << level
    right = ((r >> level) & 1) == 1
    last = sibling if AGAINST else sibling + (1 << level) - 1
    total = tl.gather(arrived, tl.broadcast_to(last, arrived.shape), 0)
    asks = right != AGAINST
    return arrived + tl.where(asks, total, 0.0), coming + tl.where(asks, 0.0, total)


@triton.jit
def states_kernel(
    q, k, v, do, g0, g1, first, last, dfirst, dlast, states, bounds, chunks_before, T, NC, NC_ALL, H, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    GRADIENT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk over the chunks of one sequence and head: write the state that enters each, for a tile of K and of V.

    Kinds of states, axis 2 of the grid: of each direction, then, with GRADIENT, the gradients of each direction's
    states, which come from the other side, made of q and do as states are of k and v.
    """
    n, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    kind = tl.program_id(2)
    SIDES: tl.constexpr = 1 if g1 is None else 2
    side, gradient = kind % SIDES, kind // SIDES
    to_right = side == gradient

    if bounds is None:
        begin, end, chunk = n * T, (n + 1) * T, n * NC
    else:
        begin, end, chunk = tl.load(bounds + n), tl.load(bounds + n + 1), tl.load(chunks_before + n)
    number = tl.cdiv(end - begin, C)

    ks = tl.program_id(1) // tl.cdiv(V, BV) * BK + tl.arange(0, BK)
    vs = tl.program_id(1) % tl.cdiv(V, BV) * BV + tl.arange(0, BV)
    in_k, in_v = ks < K, vs < V
    in_state = in_k[:, None] & in_v[None, :]
    own = ((n * H + h) * K + ks)[:, None] * V + vs[None, :]

    b_s = tl.zeros([BK, BV], tl.float32)
    if first is not None:
        b_s += load_float32(first, own, in_state & (gradient == 0))
    if dlast is not None:
        b_s += load_float32(dlast, own, in_state & (gradient == 1))

    x, y, factor = k, v, 1.0
    if GRADIENT:
        x, y = q if gradient == 1 else k, do if gradient == 1 else v
        factor = tl.where(gradient == 1, scale, 1.0)
    g = g0
    if g1 is not None:
        g = g1 if side == 1 else g0

    # Rows stand in the order in which the cumulative sum runs, from the edge that the walk reaches last. Gates of x lie
    # between x and that edge: a key's own gate is not among them, a query's is.
    r = tl.arange(0, C)
    row = tl.where(to_right, C - 1 - r, r)
    shift = tl.where(gradient == 1, 0, tl.where(to_right, 1, -1))
    for i in range(number):
        c = tl.where(to_right, i, number - 1 - i)
        at_s = ((kind.to(tl.int64) * NC_ALL + chunk + c) * H + h) * K * V + (ks * V)[:, None] + vs[None, :]
        store_rounded(states, at_s, b_s, in_state)
        start = begin + c * C
        stop = tl.minimum(start + C, end)
        t = start + row
        b_x = load_float32(x, ((t * H + h) * K)[:, None] + ks[None, :], (t < stop)[:, None] & in_k[None, :])
        b_y = load_float32(y, ((t * H + h) * V)[:, None] + vs[None, :], (t < stop)[:, None] & in_v[None, :])
        at = t + shift
        b_g = _load_gates(
            g, ((at * H + h) * K)[:, None] + ks[None, :], ((at >= start) & (at < stop))[:, None] & in_k[None, :]
        )
        left_out = tl.where(to_right, start, stop - 1)
        b_total = tl.sum(b_g, 0) + _load_gates(g, (left_out * H + h) * K + ks, in_k & (gradient == 0))
        b_x *= tl.exp2(tl.cumsum(b_g, 0)) * factor
        b_s = b_s * tl.exp2(b_total)[:, None] + _dot(tl.trans(b_x), b_y, DOT, PRECISION)

    if last is not None:
        store_rounded(last, own, b_s, in_state & (gradient == 0))
    if dfirst is not None:
        store_rounded(dfirst, own, b_s, in_state & (gradient == 1))


@triton.jit
def chunk_kernel(
    q, k, v, g0, g1, states, o, starts, ends, T, NC, NC_ALL, H, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    TRANSPOSED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk and head: ``o = A v + (q scale e^arrived) S``, with both directions in one score matrix A.

    TRANSPOSED, with do as v and dS as states: ``dv = A^T do + (k e^coming) dS``. One product per level fills A; above
    the diagonal, tokens to the left ask those to the right.
    """
    chunk, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, end = _chunk_bounds(chunk, starts, ends, T, NC, C)
    if start >= end:
        return
    SIDES: tl.constexpr = 1 if g1 is None else 2
    r = tl.arange(0, C)
    t = start + r
    inside = (t < end)[:, None]

    b_A = tl.zeros([C, C], tl.float32)
    b_own = tl.zeros([C], tl.float32)
    for k0 in range(0, K, BK):
        ks = k0 + tl.arange(0, BK)
        at, mask = ((t * H + h) * K)[:, None] + ks[None, :], inside & (ks < K)[None, :]
        b_q = load_float32(q, at, mask) * scale
        b_k = load_float32(k, at, mask)
        b_own += tl.sum(b_q * b_k, 1)
        arrived0, coming0 = _load_gates(g0, at, mask), tl.zeros([C, BK], tl.float32)
        if SIDES == 2:
            arrived1, coming1 = _load_gates(g1, at, mask), tl.zeros([C, BK], tl.float32)
        for level in range(LEVELS):
            half = r[:, None] >> level
            right = (half & 1) == 1
            meet = (r[None, :] >> level) == (half ^ 1)
            if SIDES == 2:
                b_x = b_q * tl.exp2(tl.where(right, arrived0, arrived1))
                b_y = b_k * tl.exp2(tl.where(right, coming1, coming0))
                if TRANSPOSED:
                    b_x, b_y = b_y, b_x
                arrived1, coming1 = _next_level(arrived1, coming1, level, True, C)
            else:  # a token asks or answers, so one operand holds both
                b_x = tl.where(right, b_q, b_k) * tl.exp2(tl.where(right, arrived0, coming0))
                b_y = b_x
                meet &= right != TRANSPOSED
            b_A += tl.where(meet, _dot(b_x, tl.trans(b_y), DOT, PRECISION), 0.0)
            arrived0, coming0 = _next_level(arrived0, coming0, level, False, C)
    b_A = tl.where(r[:, None] == r[None, :], SIDES * b_own[:, None], b_A)

    for v0 in range(0, V, BV):
        vs = v0 + tl.arange(0, BV)
        at_v, mask_v = ((t * H + h) * V)[:, None] + vs[None, :], inside & (vs < V)[None, :]
        b_o = _dot(b_A, load_float32(v, at_v, mask_v), DOT, PRECISION)
        for k0 in range(0, K, BK):
            ks = k0 + tl.arange(0, BK)
            in_k = (ks < K)[None, :]
            b_row = load_float32(k if TRANSPOSED else q, ((t * H + h) * K)[:, None] + ks[None, :], inside & in_k)
            b_row *= 1.0 if TRANSPOSED else scale
            for side in tl.static_range(SIDES):
                shift = (1 - 2 * side) * TRANSPOSED  # a key's own gate is not between it and the edge
                at = t + shift
                in_chunk = (at >= start) & (at < tl.minimum(start + C, end))
                b_g = _load_gates(
                    g1 if side else g0, ((at * H + h) * K)[:, None] + ks[None, :], in_chunk[:, None] & in_k
                )
                b_x = b_row * tl.exp2(tl.cumsum(b_g, 0, reverse=(side == 1) != TRANSPOSED))
                at_s = ((((side * NC_ALL + chunk) * H + h) * K + ks) * V)[:, None] + vs[None, :]
                b_s = load_float32(states, at_s, (ks < K)[:, None] & (vs < V)[None, :])
                b_o += _dot(b_x, b_s, DOT, PRECISION)
        store_rounded(o, at_v, b_o, mask_v)


@triton.jit
def gradients_kernel(
    q, k, v, g0, g1, do, states, dstates, dq, dk, dg0, dg1, starts, ends, T, NC, NC_ALL, H, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk, head and tile of K: gradients of q, k and the gates.

    A gate's gradient is the sum of q dq (or of k dk: the same pair by pair) over the pairs of tokens that it lies
    between, level by level, so that nothing cancels. Directions follow each other: together they spill.
    """
    chunk, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, end = _chunk_bounds(chunk, starts, ends, T, NC, C)
    if start >= end:
        return
    SIDES: tl.constexpr = 1 if g1 is None else 2
    r = tl.arange(0, C)
    row, column = r[:, None], r[None, :]
    t = start + r
    inside = (t < end)[:, None]
    ks = tl.program_id(2) * BK + tl.arange(0, BK)
    at, mask = ((t * H + h) * K)[:, None] + ks[None, :], inside & (ks < K)[None, :]

    b_dq = tl.zeros([C, BK], tl.float32)
    b_dk = tl.zeros([C, BK], tl.float32)
    for side in tl.static_range(SIDES):
        b_dA = tl.zeros([C, C], tl.float32)  # do v^T
        b_dA_t = tl.zeros([C, C], tl.float32)  # v do^T: a product of its own, for compilers get transposed sums wrong
        b_own = tl.zeros([C], tl.float32)
        b_in = tl.zeros([C, BK], tl.float32)  # do S^T
        b_out = tl.zeros([C, BK], tl.float32)  # v dS^T
        b_through = tl.zeros([BK], tl.float32)  # of S and dS: what passes the whole chunk
        for v0 in range(0, V, BV):
            vs = v0 + tl.arange(0, BV)
            at_v, mask_v = ((t * H + h) * V)[:, None] + vs[None, :], inside & (vs < V)[None, :]
            b_v = load_float32(v, at_v, mask_v)
            b_do = load_float32(do, at_v, mask_v)
            b_own += tl.sum(b_do * b_v, 1)
            b_dA += _dot(b_do, tl.trans(b_v), DOT, PRECISION)
            b_dA_t += _dot(b_v, tl.trans(b_do), DOT, PRECISION)
            at_s = ((((side * NC_ALL + chunk) * H + h) * K + ks) * V)[None, :] + vs[:, None]
            in_state = (ks < K)[None, :] & (vs < V)[:, None]
            b_s = load_float32(states, at_s, in_state)
            b_ds = load_float32(dstates, at_s, in_state)
            b_in += _dot(b_do, b_s, DOT, PRECISION)
            b_out += _dot(b_v, b_ds, DOT, PRECISION)
            b_through += tl.sum(b_s * b_ds, 0)

        b_q = load_float32(q, at, mask) * scale
        b_k = load_float32(k, at, mask)
        g = g1 if side else g0
        arrived, coming = _load_gates(g, at, mask), tl.zeros([C, BK], tl.float32)

        # By way of the chunk's edges. A gate lies between the entering state and tokens at it or beyond, which read
        # that, and between tokens before it and the leaving state.
        shift = 1 - 2 * side
        in_chunk = (r + shift >= 0) & (r + shift < C) & (t + shift < end)
        b_others = _load_gates(g, at + shift * H * K, in_chunk[:, None] & (ks < K)[None, :])
        b_in *= tl.exp2(tl.cumsum(arrived, 0, reverse=side == 1))
        b_out *= tl.exp2(tl.cumsum(b_others, 0, reverse=side == 0))
        pivot = row + side
        b_dg = tl.zeros([C, BK], tl.float32) + (b_through * tl.exp2(tl.sum(arrived, 0)))[None, :]
        b_z0, b_z1 = b_q * b_in, b_k * b_out
        if side:
            b_z0, b_z1 = b_z1, b_z0
        b_dg += _dot(tl.where(column >= pivot, 1.0, 0.0), b_z0, DOT, PRECISION)
        b_dg += _dot(tl.where(column < pivot, 1.0, 0.0), b_z1, DOT, PRECISION)
        b_dq += b_in + b_own[:, None] * b_k
        b_dk += b_out + b_own[:, None] * b_q

        # Inside the chunk. A token asks or answers, so one operand and one symmetric matrix hold both.
        b_pairs = tl.where((row > column) != (side == 1), b_dA, b_dA_t)
        for level in range(LEVELS):
            half = row >> level
            right = (half & 1) == 1
            asks = right != (side == 1)
            b_e = tl.exp2(tl.where(asks, arrived, coming))
            b_x = tl.where(asks, b_q, b_k) * b_e
            b_dx = _dot(tl.where((column >> level) == (half ^ 1), b_pairs, 0.0), b_x, DOT, PRECISION)
            low = tl.where(right, pivot, half << level)
            high = tl.where(right, (half + 1) << level, pivot)
            b_dg += _dot(tl.where((column >= low) & (column < high), 1.0, 0.0), b_x * b_dx, DOT, PRECISION)
            b_dx *= b_e
            b_dq += tl.where(asks, b_dx, 0.0)
            b_dk += tl.where(asks, 0.0, b_dx)
            arrived, coming = _next_level(arrived, coming, level, side == 1, C)
        store_rounded(dg1 if side else dg0, at, b_dg, mask)
    store_rounded(dq, at, b_dq * scale, mask)
    store_rounded(dk, at, b_dk, mask)
