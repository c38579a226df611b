"""Decays inside a chunk, and the walk over tiles, for gated linear attention of one or two directions.

Inside a chunk, b is the cumulative sum of the log decays in the direction's order (inclusive), b_C the chunk's total.
Everything needed is the products of q_i and k_j with e^(b_i - b_j), with e^(b_i) (state -> output) and with
e^(b_C - b_j) (token -> state). ``Factored`` takes e^(b_i) and e^(-b_j), which float32 holds well while b_C > -60;
``Dyadic`` multiplies gates along a binary tree, so that every factor is in [0, 1]: exact for every decay, even -inf.

Legend as in ``chunks.py``. ``to_left``: the direction that runs against time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from toolkit.kernels._common.chunks import Chunks, Tile

LOG2_E = math.log2(math.e)
STRONGEST_TOTAL = -60.0  # of a chunk's log decays; e^60 leaves room for the operands, see README of gla


def cumulate_(x: Tensor, to_left: bool) -> Tensor:
    """Cumulative sums over axis 1 of ``[M, C, K]``, in place, in time's order or against it.

    Inside groups of up to 8 tokens, for all groups at once, then from group to group: additions of many numbers that
    lie side by side, in a third of the time of a library's sums over an axis that is not the last.
    """
    M, C, K = x.shape
    groups = x.view(M, -1, min(C, 8), K)
    for axis, edge in ((2, slice(None)), (1, slice(0, 1) if to_left else slice(-1, None))):
        parts = groups.unbind(axis)
        for before, part in itertools.pairwise(reversed(parts) if to_left else parts):
            part.add_(before if axis == 2 else before[:, edge])
    return x


def add_before_(out: Tensor, x: Tensor, to_left: bool) -> Tensor:
    """Add to each token's row of ``out [M, C, K]`` that of the token before it, in the direction's order, of ``x``."""
    (out[:, :-1] if to_left else out[:, 1:]).add_(x[:, 1:] if to_left else x[:, :-1])
    return out


def strict(dA: Tensor, to_left: bool) -> tuple[Tensor, Tensor]:
    """The pairs of different tokens of one direction, in place, and what each token reads of itself ``[N, C, 1]``."""
    own = dA.diagonal(dim1=1, dim2=2).unsqueeze(-1).clone()
    return dA.triu_(1) if to_left else dA.tril_(-1), own


class Factored:
    """Decays of mild chunks, from b / ln 2 ``[N, C, K]``, which is written over.

    On a CPU 2^x takes a third of the time of e^x.
    """

    def __init__(self, chunks: Chunks, q: Tensor, k: Tensor, b: Tensor, tile: Tile, to_left: bool):
        self.to_left, self.work = to_left, chunks.work
        self.e = b.exp2_()
        self.total = self.e[:, :1] if to_left else self.e[:, -1:]
        self.q = self.q_in = chunks.gather(q, tile, torch.mul, self.e)
        self.k = chunks.gather(k, tile, torch.div, self.e)
        self.k_out = torch.mul(self.k, self.total, out=self.work(*self.k.shape))
        self.decay = self.total.mT

    def scores(self) -> Tensor:
        """``A [N, C, C]``; the masked half may hold inf until it is cut off."""
        N, C, _ = self.q.shape
        A = torch.bmm(self.q, self.k.mT, out=self.work(N, C, C))
        return A.triu_() if self.to_left else A.tril_()

    def gradients(self, dA: Tensor, dq_in: Tensor, dk_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk and dg without the share of the state that passes the whole chunk.

        Args:
            dA: gradient of the scores of all pairs, ``[N, C, C]``; written over, like the following two.
            dq_in: gradient of ``q_in``; dk_out likewise.
        """
        dA, own = strict(dA, self.to_left)
        y = self.k_out.mul_(dk_out)
        dk = torch.bmm(dA.mT, self.q, out=self.work(*y.shape))
        dq = dq_in.baddbmm_(dA, self.k)
        x = torch.mul(self.q, dq, out=self.work(*y.shape)).addcmul_(self.k, dk, value=-1)
        dg = add_before_(cumulate_(x, not self.to_left), cumulate_(y, self.to_left), self.to_left)
        dq.addcmul_(own, self.k).mul_(self.e)
        dk.addcmul_(own, self.q).addcmul_(dk_out, self.total).div_(self.e)
        return dq, dk, dg


class Dyadic:
    """Decays of any size, from the gates ``[N, C, K]`` in [0, 1]: at level h, halves of blocks of 2h tokens meet."""

    def __init__(self, q: Tensor, k: Tensor, gates: Tensor, to_left: bool):
        self.q, self.k, self.gates, self.to_left = q, k, gates, to_left
        self.asks, self.answers = (0, 1) if to_left else (1, 0)
        self.last = 0 if to_left else -1  # row of a half that the direction reaches last
        *_, (_, _, _, arrived, coming) = self.levels()
        self.arrived, self.coming = arrived, coming  # e^b and e^(b_C - b)
        self.q_in, self.k_out = q * arrived, k * coming
        self.decay = (arrived[:, :1] if to_left else arrived[:, -1:]).mT

    def levels(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
        """Per level h, then once more at the end with h = C.

        Yields h; the decay from the block's middle to each asking token and from each answering token to the middle,
        ``[N C / 2h, h, K]``; the decay from the block's edge to each token, itself included, and from each token on to
        the other edge, ``[N, C, K]``, inside blocks of h tokens.
        """
        C, K = self.q.shape[1:]
        arrived, coming = self.gates.clone(), torch.ones_like(self.gates)
        h = 1
        while h < C:
            a, c = arrived.view(-1, 2, h, K), coming.view(-1, 2, h, K)
            yield h, a[:, self.asks], c[:, self.answers], arrived, coming
            far = a[:, self.asks, self.last, None].clone()
            a[:, self.asks] *= a[:, self.answers, self.last, None]
            c[:, self.answers] *= far
            h *= 2
        yield C, arrived, coming, arrived, coming

    def block(self, A: Tensor, h: int) -> Tensor:
        """View of the scores that level h fills: ``[N, C / 2h, h, h]``."""
        N, C, _ = A.shape
        return A.as_strided((N, C // (2 * h), h, h), (C * C, 2 * h * (C + 1), C, 1), h if self.to_left else h * C)

    def scores(self) -> Tensor:
        N, C, K = self.q.shape
        A = self.q.new_zeros(N, C, C)
        A.diagonal(dim1=1, dim2=2).copy_((self.q * self.k).sum(-1))
        for h, to_asker, from_answerer, *_ in self.levels():
            if h < C:
                asking = self.q.view(-1, 2, h, K)[:, self.asks] * to_asker
                answering = self.k.view(-1, 2, h, K)[:, self.answers] * from_answerer
                self.block(A, h).copy_(outer(asking, answering).view(N, -1, h, h))
        return A

    def gradients(self, dA: Tensor, dq_in: Tensor, dk_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of ``Factored``; dg adds up terms of pairs that its gate lies between, so nothing cancels."""
        C, K = self.q.shape[1:]
        dA, own = strict(dA, self.to_left)
        dg = cumulate_(self.q_in.mul_(dq_in), not self.to_left)
        add_before_(dg, cumulate_(self.k_out.mul_(dk_out), self.to_left), self.to_left)
        dq, dk = dq_in.mul_(self.arrived), dk_out.mul(self.coming)
        for h, to_asker, from_answerer, *_ in self.levels():
            if h == C:
                break
            asks, answers = (slice(None), self.asks), (slice(None), self.answers)
            asking = self.q.view(-1, 2, h, K)[asks] * to_asker
            answering = self.k.view(-1, 2, h, K)[answers] * from_answerer
            d = self.block(dA, h).reshape(-1, h, h)
            dasking, danswering = combine(d, answering), combine(d.mT, asking)
            dq.view(-1, 2, h, K)[asks].addcmul_(dasking, to_asker)
            dk.view(-1, 2, h, K)[answers].addcmul_(danswering, from_answerer)
            x, y = asking.mul_(dasking), answering.mul_(danswering)
            dg.view(-1, 2, h, K)[asks].add_(cumulate_(x, not self.to_left))
            if h > 1:
                add_before_(dg.view(-1, 2, h, K)[answers], cumulate_(y, self.to_left), self.to_left)
        return dq.addcmul_(own, self.k), dk.addcmul_(own, self.q), dg


def outer(x: Tensor, y: Tensor) -> Tensor:
    """``x y^T`` of ``[M, h, K]``; sums of products where the matrices are too small for the library."""
    return (x * y).sum(-1, keepdim=True) if x.shape[1] == 1 else torch.bmm(x, y.mT)


def combine(d: Tensor, x: Tensor) -> Tensor:
    """``d x`` of ``[M, h, h]`` and ``[M, h, K]``."""
    return d * x if d.shape[1] == 1 else torch.bmm(d, x)


def decays(chunks: Chunks, q: Tensor, k: Tensor, g: Tensor, tile: Tile, to_left: bool, form: str) -> Factored | Dyadic:
    """The form that the log decays of this tile of ``[B, T, H, K]`` allow.

    ``form`` = ``dyadic``: that one at any rate.
    """
    if form != "dyadic":
        b = cumulate_(chunks.gather(g, tile, torch.mul, LOG2_E), to_left)
        if b[:, 0 if to_left else -1].amin().item() > STRONGEST_TOTAL * LOG2_E:  # false where it is NaN
            return Factored(chunks, q, k, b, tile, to_left)
    return Dyadic(chunks.gather(q, tile), chunks.gather(k, tile), chunks.gather(g, tile).exp_(), to_left)


def forward(
    chunks: Chunks,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float,
    first: Tensor | None,
    last: Tensor | None,
    entering: Tensor,
    o: Tensor,
    to_left: bool = False,
    add: bool = False,
    form: str = "auto",
) -> None:
    """Write the outputs of one direction to ``o``.

    Args:
        chunks: how the sequences are cut.
        q: ``[B, T, H, K]``, as k and the log decays g; v and o are ``[B, T, H, V]``.
        scale: multiplies q.
        first: ``[S, B, H, K, V]`` initial states, or None; ``last`` receives the final ones.
        entering: ``[tiles, B, H, K, V]`` receives the state that enters each tile, for the backward.
        to_left: the direction that runs against time.
        add: add the outputs to what stands in ``o``.
        form: ``auto`` or ``dyadic``.
    """
    entering[len(chunks.tiles) :].zero_()
    carry = torch.zeros_like(entering[0])
    for number, tile in chunks.walk(to_left):
        entering[number] = carry
        w = decays(chunks, q, k, g, tile, to_left, form)
        vv = chunks.gather(v, tile)
        S, carry = chunks.scan(w.k_out, vv, w.decay, carry, tile, to_left, first, last)
        y = torch.baddbmm(vv, w.q_in, S, beta=0, alpha=scale, out=chunks.work(*vv.shape))
        chunks.scatter(y.baddbmm_(w.scores(), vv, alpha=scale), o, tile, add)


def backward(
    chunks: Chunks,
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float,
    first: Tensor | None,
    dlast: Tensor | None,
    entering: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dg: Tensor,
    dfirst: Tensor | None,
    to_left: bool = False,
    add: bool = False,
    form: str = "auto",
) -> None:
    """Write the gradients of ``forward`` for ``do`` and for ``dlast``, that of the final states (None: zeros).

    ``add``: add those of q, k and v to what stands in ``dq``, ``dk`` and ``dv``.
    """
    carry = torch.zeros_like(entering[0])
    for number, tile in chunks.walk(not to_left):
        w = decays(chunks, q, k, g, tile, to_left, form)
        vv, dd = chunks.gather(v, tile), chunks.gather(do, tile, torch.mul, scale)
        S, _ = chunks.scan(w.k_out, vv, w.decay, entering[number], tile, to_left, first, None)
        dS, carry = chunks.scan(w.q_in, dd, w.decay, carry, tile, not to_left, dlast, dfirst)
        work = chunks.work
        dvv = torch.bmm(w.k_out, dS, out=work(*vv.shape))
        chunks.scatter(dvv.baddbmm_(w.scores().mT, dd), dv, tile, add)

        dA = torch.bmm(dd, vv.mT, out=work(len(vv), chunks.C, chunks.C))
        dq_in = torch.bmm(dd, S.mT, out=work(*w.q_in.shape))
        dk_out = torch.bmm(vv, dS.mT, out=work(*w.k_out.shape))
        through = S.mul_(dS).sum(-1, keepdim=True).mul_(w.decay)  # share of the state that passes the chunk
        dqq, dkk, dgg = w.gradients(dA, dq_in, dk_out)
        chunks.scatter(dqq, dq, tile, add)
        chunks.scatter(dkk, dk, tile, add)
        chunks.scatter(dgg.add_(through.mT), dg, tile)
