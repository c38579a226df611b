"""The gated delta rule in chunks, in plain PyTorch.

Time is walked in tiles that stay in the cache; the backward computes each tile again from the state that entered it.
Legend as in ``_common/chunks.py``; S is a state ``[K, V]`` that enters a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from toolkit.kernels._common.chunks import Chunks, Tile, groups, num_tiles
from toolkit.kernels._common.gated_scan import LOG2_E, add_before_, cumulate_
from toolkit.kernels._common.memory import empty_like
from toolkit.kernels.gated_delta_rule.reference import NORM_EPS

ERASES = -1e4  # e^-10000 is 0; -inf would make NaN of b_i - b_j


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    qk_l2norm: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs, final states, the states that enter each tile of time, and what tokens wrote, if it is to be kept."""
    B, T, H, K = q.shape
    S = None if cu_seqlens is None else len(cu_seqlens) - 1
    o = empty_like(v)
    written = empty_like(v, torch.float32) if keep else v.new_empty(0, dtype=torch.float32)
    last = torch.empty(B if S is None else S, H, K, v.shape[-1], dtype=torch.float32, device=v.device)
    entering = last.new_empty(num_tiles(T, S), B, *last.shape[1:])
    last.zero_() if initial_state is None else last.copy_(initial_state)  # what a sequence of no tokens ends with
    with torch.autocast(q.device.type, enabled=False):
        for batch, chunks in groups(q, v, cu_seqlens):
            first, ends = (by_sequence(x, batch, cu_seqlens) for x in (initial_state, last))
            states = entering[:, batch]
            states[len(chunks.tiles) :].zero_()
            carry = torch.zeros_like(states[0])
            gates = Gates(chunks, g[batch], beta[batch])
            for number, tile in chunks.walk():
                states[number] = carry
                wy = Wy(chunks, tile, q[batch], k[batch], gates, qk_l2norm)
                state, carry = wy.walk(chunks.gather(v[batch], tile, torch.mul, wy.beta), carry, first, ends)
                A = wy.pairs(wy.q, wy.k).mul_(wy.decay)
                q_in = wy.times(wy.q, wy.arrived)
                read = torch.baddbmm(wy.written, q_in, state, beta=0, alpha=scale, out=chunks.work(*wy.written.shape))
                chunks.scatter(read.baddbmm_(A, wy.written, alpha=scale), o[batch], tile)
                if keep:
                    chunks.scatter(wy.written, written[batch], tile)
    return o, last, entering, written


def backward(
    do: Tensor | None,
    dlast: Tensor | None,
    entering: Tensor,
    written: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    qk_l2norm: bool,
    keep: bool,
) -> list[Tensor]:
    """Gradients of q, k, v, g, beta, and of the initial states where there are any."""
    if do is None:
        do = torch.zeros_like(v)
    grads = [empty_like(x) for x in (q, k, v, g, beta)]
    S = len(q) if cu_seqlens is None else len(cu_seqlens) - 1
    dfirst = entering.new_empty(S, *entering.shape[2:])
    dfirst.zero_() if dlast is None else dfirst.copy_(dlast)  # that of a sequence of no tokens
    with torch.autocast(q.device.type, enabled=False):
        for batch, chunks in groups(q, v, cu_seqlens):
            first, dends, dbegins = (by_sequence(x, batch, cu_seqlens) for x in (initial_state, dlast, dfirst))
            first = None if first is None else first.float()
            carry = torch.zeros_like(entering[0, batch])
            gates = Gates(chunks, g[batch], beta[batch])
            for number, tile in chunks.walk(to_left=True):
                wy = Wy(chunks, tile, q[batch], k[batch], gates, qk_l2norm)
                vv, enters = chunks.gather(v[batch], tile), entering[number, batch]
                if keep:
                    wy.written = chunks.gather(written[batch], tile)
                    state, _ = chunks.scan(wy.k_out, wy.written, wy.total, enters, tile, False, first, None)
                else:
                    state, _ = wy.walk(wy.times(vv, wy.beta), enters, first, None)
                dd = chunks.gather(do[batch], tile, torch.mul, scale)
                found, carry = wy.gradients(dd, vv, state, carry, dends, dbegins)
                for grad, part in zip(grads, found, strict=True):
                    chunks.scatter(part, (grad if grad.dim() == 4 else grad.unsqueeze(-1))[batch], tile)
    return grads if initial_state is None else [*grads, dfirst.to(initial_state.dtype)]


def by_sequence(states: Tensor | None, batch: slice, cu_seqlens: Tensor | None) -> Tensor | None:
    """``[S, H, K, V]`` as sequences that the walk meets one after the other, times those that it walks in step."""
    if states is None:
        return None
    return states[None, batch] if cu_seqlens is None else states.unsqueeze(1)


class Gates:
    """Decays and write strengths of all chunks at once, ``[chunks B H, C, 1]``: they are small.

    Attributes:
        b: cumulative sums of the log decays in a chunk, to the base 2; their total in a chunk is b_C.
        arrived, coming, total: e^b, e^(b_C - b) and e^b_C ``[chunks B H, 1, 1]``.
        entering: beta e^b.
    """

    def __init__(self, chunks: Chunks, g: Tensor, beta: Tensor):
        g, self.beta = (chunks.gather(x.unsqueeze(-1), chunks.all) for x in (g, beta))
        # float64: where gates are strong, b is large and the differences that matter are small.
        self.b = g.double().clamp_min_(ERASES).cumsum(1).mul_(LOG2_E)
        self.arrived, self.coming = (x.float().exp2_() for x in (self.b, self.b[:, -1:] - self.b))
        self.beta, self.entering = self.beta.clone(), self.beta * self.arrived
        self.total = self.arrived[:, -1:]


class Wy:
    """The chunks of a tile, all at once: what does not depend on the state. D_ij = e^(b_i - b_j) for i >= j.

    Attributes:
        q, k: ``[N, C, K]``, normalised if asked for.
        q_root, k_root: what they were multiplied with, ``[N, C, 1]``.
        b, beta, arrived, coming, total, entering: the tile's part of ``Gates``.
        decay: D, ``[N, C, C]``.
        keys: ``K K^T * D``.
        X: ``(I + strict_lower(diag(beta) keys))^-1``.
        k_in, k_out: ``beta e^b k``, which meets the entering state, and ``e^(b_C - b) k``.
        written: what each token adds to its key's row, ``X (beta v - k_in S)``, ``[N, C, V]``; ``walk`` sets it.
    """

    written: Tensor

    def __init__(self, chunks: Chunks, tile: Tile, q: Tensor, k: Tensor, gates: Gates, qk_l2norm: bool):
        self.chunks, self.tile, self.work = chunks, tile, chunks.work
        self.q, self.k = (chunks.gather(x, tile) for x in (q, k))
        self.q_root = normalise(self.q) if qk_l2norm else None
        self.k_root = normalise(self.k) if qk_l2norm else None
        (lo, n), N = tile, len(self.q)
        here = slice(lo * N // n, (lo + n) * N // n)
        b, self.beta, self.arrived, self.coming, self.entering = (
            x[here] for x in (gates.b, gates.beta, gates.arrived, gates.coming, gates.entering)
        )
        self.total = self.work(N, 1, 1).copy_(gates.total[here])
        between = torch.sub(b, b.mT, out=self.work(N, chunks.C, chunks.C))
        self.decay = between.exp2_().tril_()  # the other half may hold inf until it is cut off
        self.keys = self.pairs(self.k, self.k).mul_(self.decay)
        self.X = self.work(N, chunks.C, chunks.C).mT  # as the library lays out its solutions
        M, eye = self.times(self.keys, self.beta), identity(chunks.C, q.device)
        torch.linalg.solve_triangular(M, eye, upper=False, left=False, unitriangular=True, out=self.X)
        self.k_in, self.k_out = self.times(self.k, self.entering), self.times(self.k, self.coming)

    def times(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.mul(x, y, out=self.work(*x.shape))

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.bmm(x, y, out=self.work(len(x), x.shape[1], y.shape[2]))

    def pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """Products of all tokens of x and y, ``[N, C, C]``."""
        return self.product(x, y.mT)

    def by_chunk(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Each ``[N, ...]`` as one ``[B H, ...]`` for each chunk of the tile."""
        return (self.work.split(x, self.tile[1]) for x in tensors)

    def walk(self, wanted: Tensor, carry: Tensor, first: Tensor | None, last: Tensor | None) -> tuple[Tensor, Tensor]:
        """From left to right: the states that enter the chunks ``[N, K, V]``, and the one that leaves the tile.

        Args:
            wanted: ``beta v``, ``[N, C, V]``; written over.
            carry: ``[B, H, K, V]``, the state that comes from the tile before.
            first: ``[S, B, H, K, V]``, the state that each sequence begins with; zeros if None.
            last: receives the state that each sequence ends with.
        """
        lo, n = self.tile
        states = self.work(len(wanted) + len(wanted) // n, *carry.shape[2:])
        states_of = self.work.split(states, n + 1)
        states_of[0].view_as(carry).copy_(carry)
        self.written = self.work(*wanted.shape)
        total, X, k_in, k_out = self.by_chunk(self.total, self.X, self.k_in, self.k_out.mT)
        for c, (residual, written) in enumerate(zip(*self.by_chunk(wanted, self.written), strict=True)):
            S, out = states_of[c : c + 2]
            begun, ended = self.chunks.starts.get(lo + c), self.chunks.ends.get(lo + c)
            if begun is not None:
                S.zero_() if first is None else S.view_as(carry).copy_(first[begun])
            torch.bmm(X[c], residual.baddbmm_(k_in[c], S, alpha=-1), out=written)
            torch.bmm(k_out[c], written, out=out).addcmul_(total[c], S)
            if ended is not None and last is not None:
                last[ended].copy_(out.view_as(carry))
        return states[: len(wanted)], states_of[n].view_as(carry).clone()

    def gradients(
        self, do: Tensor, v: Tensor, state: Tensor, carry: Tensor, dlast: Tensor | None, dfirst: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of the tile's q, k, v, g, beta, and of the state that enters the tile.

        Args:
            do: ``[N, C, V]``, times the scale; v likewise.
            state: the states that enter the chunks.
            carry: ``[B, H, K, V]``, the gradient of the state that leaves the tile.
            dlast: ``[S, B, H, K, V]``, the gradients of the states that sequences end with; zeros if None.
            dfirst: receives those of the states that sequences begin with.
        """
        products, beta = self.pairs(self.q, self.k), self.beta
        do_in = self.times(do, self.arrived)
        dwritten = self.product(self.times(products, self.decay).mT, do)
        x, dstate, carry = self.walk_back(dwritten, do_in, carry, dlast, dfirst)
        dA = self.pairs(do, self.written).mul_(self.decay)
        dM = self.pairs(x, self.written).tril_(-1)  # of -M
        dq = self.product(do_in, state.mT)
        dk_in = self.product(x, state.mT)  # of -k_in
        dk = self.product(self.written, dstate.mT).mul_(self.coming)

        read = self.rowsum(self.k, dk_in).mul_(self.arrived)
        dkeys = self.times(dM, self.keys)
        dbeta = self.rowsum(x, v).sub_(read).sub_(dkeys.sum(-1, keepdim=True))

        # A log decay lies between the tokens i >= t > j, between the chunk's edge and i >= t, between j < t and the
        # other edge, and between the edges. Only these are added up, so nothing cancels and e^-inf gives exactly 0.
        pairs = cumulate_(dkeys.mul_(-beta).addcmul_(dA, products), to_left=True).tril_(-1)
        dg = cumulate_(self.rowsum(self.q, dq).addcmul_(beta, read, value=-1), to_left=True)
        add_before_(dg, cumulate_(self.rowsum(self.k, dk), to_left=False), to_left=False)
        through = self.rowsum(state.flatten(1), dstate.flatten(1)).unsqueeze(-1)
        dg.add_(pairs.sum(-1, keepdim=True)).addcmul_(self.total, through)

        dM.mul_(self.decay).mul_(beta)
        dq.baddbmm_(dA, self.k)
        dk.addcmul_(dk_in, self.entering, value=-1).baddbmm_(dA.mT, self.q)
        dk.baddbmm_(torch.add(dM, dM.mT, out=dA), self.k, alpha=-1)
        for d, y, inverse_root in ((dq, self.q, self.q_root), (dk, self.k, self.k_root)):
            if inverse_root is not None:
                d.addcmul_(y, self.rowsum(y, d), value=-1).mul_(inverse_root)
        return [dq, dk, x.mul_(beta), dg, dbeta], carry

    def walk_back(
        self, dwritten: Tensor, do_in: Tensor, carry: Tensor, dlast: Tensor | None, dfirst: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From right to left; arguments as of ``gradients``.

        Args:
            dwritten: the scores' share of the gradient of ``written``; written over.
            do_in: ``e^b do``.

        Returns:
            the gradient of ``beta v - k_in S``, those of the states that leave the chunks, and of the one that enters
            the tile.
        """
        lo, n = self.tile
        N = len(dwritten)
        dstates = self.work(N + N // n, *carry.shape[2:])
        torch.bmm(self.q.mT, do_in, out=dstates[:N])
        dstates_of = self.work.split(dstates, n + 1)
        dstates_of[n].view_as(carry).copy_(carry)
        x = self.work(*dwritten.shape)
        total, X, k_in, k_out = self.by_chunk(self.total, self.X.mT, self.k_in.mT, self.k_out)
        dwritten_of, x_of = self.by_chunk(dwritten, x)
        for c in range(n - 1, -1, -1):
            out, dS = dstates_of[c : c + 2]
            begun, ended = self.chunks.starts.get(lo + c), self.chunks.ends.get(lo + c)
            if ended is not None:
                dS.zero_() if dlast is None else dS.view_as(carry).copy_(dlast[ended])
            torch.bmm(X[c], dwritten_of[c].baddbmm_(k_out[c], dS), out=x_of[c])
            out.baddbmm_(k_in[c], x_of[c], alpha=-1).addcmul_(total[c], dS)
            if begun is not None and dfirst is not None:
                dfirst[begun].copy_(out.view_as(carry))
        return x, dstates[N // n :], dstates_of[0].view_as(carry).clone()

    def rowsum(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of ``x y`` over the last axis, which stays."""
        return torch.mul(x, y, out=self.work.scratch(*x.shape)).sum(-1, keepdim=True)


@lru_cache(maxsize=16)
def identity(C: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.eye(C, device=device)


def normalise(x: Tensor) -> Tensor:
    """``x / sqrt(sum x^2 + 1e-6)`` in place; returns the inverse root."""
    root = (x * x).sum(-1, keepdim=True).add_(NORM_EPS).rsqrt_()
    x.mul_(root)
    return root
