"""The gated delta rule in chunks, in plain PyTorch.

Time is walked in tiles that stay in the cache; the backward computes each tile again from the state that entered it.
Legend as in ``_common/chunks.py``; S is a state ``[K, V]`` that enters a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.kernels._common.chunks import Chunks, Tile, groups, num_tiles
from toolkit.kernels._common.gated_scan import LOG2_E, triangle
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, final states, and the states that enter each tile of time."""
    B, T, H, K = q.shape
    S = None if cu_seqlens is None else len(cu_seqlens) - 1
    o = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    last = torch.empty(B if S is None else S, H, K, v.shape[-1], dtype=torch.float32, device=v.device)
    entering = last.new_empty(num_tiles(T, S), B, *last.shape[1:])
    last.zero_() if initial_state is None else last.copy_(initial_state)  # what a sequence of no tokens ends with
    with torch.autocast(q.device.type, enabled=False):
        for batch, chunks in groups(q, v, cu_seqlens):
            sequence = [x[batch] for x in (q, k, v, g, beta)]
            first, ends = (by_sequence(x, batch, cu_seqlens) for x in (initial_state, last))
            states = entering[:, batch]
            states[len(chunks.tiles) :].zero_()
            carry = torch.zeros_like(states[0])
            for number, tile in enumerate(chunks.tiles):
                states[number] = carry
                wy = Wy(chunks, tile, sequence, qk_l2norm)
                state, carry = wy.walk(carry, first, ends)
                A = torch.bmm(wy.q, wy.k.mT).mul_(wy.decay)
                read = torch.bmm(A, wy.written).baddbmm_(wy.q_in, state, beta=scale, alpha=scale)
                chunks.scatter(read, o[batch], tile)
    return o, last, entering


def backward(
    do: Tensor | None,
    dlast: Tensor | None,
    entering: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    qk_l2norm: bool,
) -> list[Tensor]:
    """Gradients of q, k, v, g, beta, and of the initial states where there are any."""
    if do is None:
        do = torch.zeros_like(v)
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, g, beta)]
    S = len(q) if cu_seqlens is None else len(cu_seqlens) - 1
    dfirst = entering.new_empty(S, *entering.shape[2:])
    dfirst.zero_() if dlast is None else dfirst.copy_(dlast)  # that of a sequence of no tokens
    with torch.autocast(q.device.type, enabled=False):
        for batch, chunks in groups(q, v, cu_seqlens):
            sequence = [x[batch] for x in (q, k, v, g, beta)]
            first, dends, dbegins = (by_sequence(x, batch, cu_seqlens) for x in (initial_state, dlast, dfirst))
            carry = torch.zeros_like(entering[0, batch])
            for number, tile in reversed(list(enumerate(chunks.tiles))):
                wy = Wy(chunks, tile, sequence, qk_l2norm)
                state, _ = wy.walk(entering[number, batch], first, None)
                found, carry = wy.gradients(chunks.gather(do[batch], tile).mul_(scale), state, carry, dends, dbegins)
                for grad, part in zip(grads, found, strict=True):
                    chunks.scatter(part, (grad if grad.dim() == 4 else grad.unsqueeze(-1))[batch], tile)
    return grads if initial_state is None else [*grads, dfirst.to(initial_state.dtype)]


def by_sequence(states: Tensor | None, batch: slice, cu_seqlens: Tensor | None) -> Tensor | None:
    """``[S, H, K, V]`` as sequences that the walk meets one after the other, times those that it walks in step."""
    if states is None:
        return None
    return states[None, batch] if cu_seqlens is None else states.unsqueeze(1)


class Wy:
    """The chunks of a tile, all at once: what does not depend on the state.

    b is the cumulative sum of the log decays in a chunk, b_C its total, D_ij = e^(b_i - b_j) for i >= j.

    Attributes:
        q, k, v: ``[N, C, D]``, normalised if asked for.
        q_root, k_root: what they were multiplied with, ``[N, C, 1]``.
        decay: D, ``[N, C, C]``.
        keys: the strictly lower part of ``K K^T * D``.
        X: ``(I + diag(beta) keys)^-1``.
        q_in, k_in, k_out: ``e^b q``, ``beta e^b k`` (they meet the entering state) and ``e^(b_C - b) k``.
        written: what each token adds to its key's row, ``X (beta v - k_in S)``; ``walk`` sets it.
    """

    def __init__(self, chunks: Chunks, tile: Tile, sequence: Sequence[Tensor], qk_l2norm: bool):
        q, k, v, g, beta = sequence
        self.chunks, self.tile = chunks, tile
        self.q, self.k, self.v = (chunks.gather(x, tile) for x in (q, k, v))
        self.q_root = normalise(self.q) if qk_l2norm else None
        self.k_root = normalise(self.k) if qk_l2norm else None
        self.beta = chunks.gather(beta.unsqueeze(-1), tile)

        # float64: where gates are strong, b is large and the differences that matter are small.
        b = chunks.gather(g.unsqueeze(-1), tile).double().clamp_min_(ERASES).cumsum(1).mul_(LOG2_E)
        self.decay = (b - b.mT).float().exp2_().tril_()  # the other half may hold inf until it is cut off
        self.arrived = b.float().exp2_()
        self.coming = (b[:, -1:] - b).float().exp2_()

        self.keys = torch.bmm(self.k, self.k.mT).mul_(self.decay).tril_(-1)
        eye = torch.eye(chunks.C, device=q.device).expand_as(self.keys)
        self.X = torch.linalg.solve_triangular(self.keys * self.beta, eye, upper=False, left=False, unitriangular=True)
        self.q_in, self.k_out = self.q * self.arrived, self.k * self.coming
        self.k_in = self.k * (self.arrived * self.beta)

    def by_chunk(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[N, ...]`` as one ``[B H, ...]`` for each chunk of the tile."""
        return x.unflatten(0, (self.tile[1], -1)).unbind()

    def walk(self, carry: Tensor, first: Tensor | None, last: Tensor | None) -> tuple[Tensor, Tensor]:
        """From left to right: the states that enter the chunks ``[N, K, V]``, and the one that leaves the tile.

        Args:
            carry: ``[B, H, K, V]``, the state that comes from the tile before.
            first: ``[S, B, H, K, V]``, the state that each sequence begins with; zeros if None.
            last: receives the state that each sequence ends with.
        """
        lo, n = self.tile
        states = carry.new_empty(n + 1, *carry.shape)
        states[0] = carry
        flat = states.flatten(1, 2).unbind()
        self.written = self.v * self.beta
        keep, X, k_in, k_out = map(self.by_chunk, (self.arrived[:, -1:], self.X, self.k_in, self.k_out))
        for c, written in enumerate(self.by_chunk(self.written)):
            begun, ended = self.chunks.starts.get(lo + c), self.chunks.ends.get(lo + c)
            if begun is not None:
                states[c].zero_() if first is None else states[c].copy_(first[begun])
            torch.bmm(X[c], torch.baddbmm(written, k_in[c], flat[c], alpha=-1), out=written)
            torch.bmm(k_out[c].mT, written, out=flat[c + 1]).addcmul_(keep[c], flat[c])
            if ended is not None and last is not None:
                last[ended].copy_(states[c + 1])
        return states[:-1].flatten(0, 2), states[n]

    def gradients(
        self, do: Tensor, state: Tensor, carry: Tensor, dlast: Tensor | None, dfirst: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of the tile's q, k, v, g, beta, and of the state that enters the tile.

        Args:
            do: ``[N, C, V]``, times the scale.
            state: what ``walk`` returned.
            carry: ``[B, H, K, V]``, the gradient of the state that leaves the tile.
            dlast: ``[S, B, H, K, V]``, the gradients of the states that sequences end with; zeros if None.
            dfirst: receives those of the states that sequences begin with.
        """
        products = torch.bmm(self.q, self.k.mT)
        x, dstate, carry = self.walk_back(torch.bmm((products * self.decay).mT, do), do, carry, dlast, dfirst)
        dA = torch.bmm(do, self.written.mT).mul_(self.decay)
        dM = torch.bmm(x, self.written.mT).neg_().tril_(-1)
        dq_in = torch.bmm(do, state.mT)
        dk_in = torch.bmm(x, state.mT).neg_()
        dk_out = torch.bmm(self.written, dstate.mT)

        read = rowsum(self.k, dk_in).mul_(self.arrived)
        dkeys = dM * self.keys
        dbeta = dkeys.sum(-1, keepdim=True).add_(rowsum(x, self.v)).add_(read)

        # A log decay lies between the tokens i >= t > j, between the chunk's edge and i >= t, between j < t and the
        # other edge, and between the edges. Only these are added up, so nothing cancels and e^-inf gives exactly 0.
        upper, C = triangle(self.chunks.C, True, 0, do.device), self.chunks.C
        pairs = dkeys.mul_(self.beta).addcmul_(dA, products)
        dg = torch.bmm(upper.expand_as(pairs), pairs).tril_(-1).sum(-1, keepdim=True)
        dg.baddbmm_(upper.expand_as(pairs), rowsum(self.q_in, dq_in).addcmul_(self.beta, read))
        dg.baddbmm_(triangle(C, False, 1, do.device).expand_as(pairs), rowsum(self.k_out, dk_out))
        dg.addcmul_(self.arrived[:, -1:], rowsum(state.flatten(1), dstate.flatten(1)).unsqueeze(-1))

        dM.mul_(self.decay).mul_(self.beta)
        dq = dq_in.mul_(self.arrived).baddbmm_(dA, self.k)
        dk = dk_out.mul_(self.coming).addcmul_(dk_in, self.arrived * self.beta)
        dk.baddbmm_(dA.mT, self.q).baddbmm_(dM + dM.mT, self.k)
        for d, y, inverse_root in ((dq, self.q, self.q_root), (dk, self.k, self.k_root)):
            if inverse_root is not None:
                d.addcmul_(y, rowsum(y, d), value=-1).mul_(inverse_root)
        return [dq, dk, x.mul_(self.beta), dg, dbeta], carry

    def walk_back(
        self, x: Tensor, do: Tensor, carry: Tensor, dlast: Tensor | None, dfirst: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From right to left; arguments as of ``gradients``, x is the scores' share of the gradient of ``written``.

        Returns:
            the gradient of ``beta v - k_in S``, those of the states that leave the chunks, and of the one that enters
            the tile.
        """
        lo, n = self.tile
        dstates = carry.new_empty(n + 1, *carry.shape)
        torch.bmm(self.q_in.mT, do, out=dstates[:-1].view(-1, *carry.shape[2:]))
        dstates[n] = carry
        flat = dstates.flatten(1, 2).unbind()
        keep, X, k_in, k_out, parts = map(self.by_chunk, (self.arrived[:, -1:], self.X, self.k_in, self.k_out, x))
        for c in range(n - 1, -1, -1):
            begun, ended = self.chunks.starts.get(lo + c), self.chunks.ends.get(lo + c)
            if ended is not None:
                dstates[c + 1].zero_() if dlast is None else dstates[c + 1].copy_(dlast[ended])
            torch.bmm(X[c].mT, torch.baddbmm(parts[c], k_out[c], flat[c + 1]), out=parts[c])
            flat[c].baddbmm_(k_in[c].mT, parts[c], alpha=-1).addcmul_(keep[c], flat[c + 1])
            if begun is not None and dfirst is not None:
                dfirst[begun].copy_(dstates[c])
        return x, dstates[1:].flatten(0, 2), dstates[0]


def normalise(x: Tensor) -> Tensor:
    """``x / sqrt(sum x^2 + 1e-6)`` in place; returns the inverse root."""
    root = rowsum(x, x).add_(NORM_EPS).rsqrt_()
    x.mul_(root)
    return root


def rowsum(x: Tensor, y: Tensor) -> Tensor:
    """The sum of ``x y`` over the last axis, which stays."""
    return (x * y).sum(-1, keepdim=True)
