"""Sequences cut into chunks, and chunks grouped into tiles of time: copies in and out, and the scan over chunks.

Legend: B batch, T time, H heads, K key width, V value width, D either; C tokens of a chunk, n chunks of a tile,
N = n B H; S packed sequences, or 1 for a batch of equal lengths.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from toolkit.kernels._common.memory import Workspace, workspace

CHUNK = 32  # 64 is as fast where decays are mild, and dearer where they are not
TILE = 512  # tokens; q, k, v and the gates of one tile stay in the cache
GROUP = 1 << 20  # elements of one operand of a tile: larger batches are walked in groups

Tile = tuple[int, int]  # first chunk, chunks


def num_tiles(T: int, num_sequences: int | None) -> int:
    """Upper bound of the number of tiles that depends on shapes only, as a fake kernel needs.

    Never 1, which export would take for a property of the example's T.
    """
    padded = T if num_sequences is None else T + num_sequences * (CHUNK - 1)
    return padded // TILE + 2


def chunk_length(T: int, num_sequences: int | None) -> int:
    """``CHUNK``, or the power of two that holds the (mean) length if that is shorter."""
    mean = T if num_sequences is None else -(-T // max(num_sequences, 1))
    return min(CHUNK, 1 << max(mean - 1, 0).bit_length())


def groups(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> Iterator[tuple[slice, Chunks]]:
    """Parts of the batch whose tiles are of a good size, each with its cut into chunks; none if nothing is there."""
    B, T, H, K = q.shape
    if not q.numel() or not v.numel():
        return
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    length = chunk_length(T, None if bounds is None else len(bounds) - 1)
    step = max(1, GROUP // (min(T, TILE) * H * max(K, v.shape[-1])))
    with workspace(q.device) as work:
        for b in range(0, B, step):
            yield slice(b, b + step), Chunks((min(step, B - b), T, H), bounds, work, length)


class Chunks:
    """Which token stands in which chunk. Chunks never straddle sequences; the last one of each is padded with zeros.

    Args:
        shape: B, T, H.
        bounds: first token of each packed sequence, then T (``cu_seqlens``); None for a batch of equal lengths.
        work: memory for the tiles.
        length: C, a power of two; at most ``CHUNK`` unless ``bounds`` is None.
    """

    def __init__(self, shape: tuple[int, int, int], bounds: Sequence[int] | None, work: Workspace, length: int):
        self.B, self.T, self.H = shape
        self.C = length
        self.work = work
        self.lying: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        spans = [(0, self.T)] if bounds is None else list(itertools.pairwise(bounds))
        self.starts: dict[int, int] = {}  # first chunk of a sequence -> its number
        self.ends: dict[int, int] = {}  # last chunk of a sequence -> its number
        firsts: list[tuple[int, int]] = []  # first token and first token beyond the sequence, of each chunk
        for number, (begin, end) in enumerate(spans):
            if begin < end:
                self.starts[len(firsts)] = number
                firsts += [(token, end) for token in range(begin, end, length)]
                self.ends[len(firsts) - 1] = number
        per_tile = max(1, TILE // length)
        self.tiles: list[Tile] = [(c, min(per_tile, len(firsts) - c)) for c in range(0, len(firsts), per_tile)]
        self.all: Tile = (0, len(firsts))
        self.tokens: Tensor | None = None
        if bounds is not None:
            tokens, beyond = torch.tensor(firsts, dtype=torch.long, device=work.device).view(-1, 2, 1).unbind(1)
            self.tokens = tokens + torch.arange(length, device=work.device)
            self.inside = self.tokens < beyond
            self.tokens.clamp_(max=max(self.T - 1, 0))

    def walk(self, to_left: bool = False) -> Iterator[tuple[int, Tile]]:
        """The tiles with their numbers, in a direction's order; each begins in the memory of the one before."""
        numbered = list(enumerate(self.tiles))
        for number, tile in reversed(numbered) if to_left else numbered:
            self.work.restart()
            yield number, tile

    def rows(self, n: int, D: int) -> tuple[Tensor, Tensor]:
        """Memory in the cache for a tile as it lies, ``[B, n C, H, D]``, and a view of it by head, ``[n, B, H, C, D]``.

        Memory that is not in the cache would be several times slower to read or write in the heads' pieces of rows.
        """
        if (n, D) not in self.lying:
            rows = self.work.scratch(self.B, n * self.C, self.H, D)
            self.lying[n, D] = rows, rows.view(self.B, n, self.C, self.H, D).permute(1, 0, 3, 2, 4)
        return self.lying[n, D]

    def gather(
        self, x: Tensor, tile: Tile, then: Callable[..., Tensor] | None = None, operand: Tensor | float = 0.0
    ) -> Tensor:
        """The tile's part of ``[B, T, H, D]`` as contiguous float32 ``[N, C, D]``, in the memory of the tile.

        Args:
            then: ``torch.mul`` or the like, done on the way with the operand, a number, ``[N, C, D]`` or ``[N, C, 1]``.
        """
        lo, n = tile
        rows, by_head = self.rows(n, x.shape[-1])
        if self.tokens is not None:
            rows[0].copy_(x[0].index_select(0, self.tokens[lo : lo + n].flatten()))
            rows[0].masked_fill_(~self.inside[lo : lo + n].view(-1, 1, 1), 0)
        else:
            t = lo * self.C
            there = min(n * self.C, self.T - t)
            rows[:, :there].copy_(x[:, t : t + there])
            if there < n * self.C:
                rows[:, there:].zero_()
        out = self.work(*by_head.shape)
        if then is None:
            out.copy_(by_head)
        elif isinstance(operand, Tensor):
            then(by_head, operand.view(*out.shape[:-1], -1), out=out)
        else:
            then(by_head, operand, out=out)
        return out.view(-1, *out.shape[3:])

    def scatter(self, y: Tensor, out: Tensor, tile: Tile, add: bool = False) -> None:
        """Write ``[N, C, D]`` to the tile's tokens of ``out [B, T, H, D]``, in its type, or add it to them."""
        lo, n = tile
        rows, by_head = self.rows(n, y.shape[-1])
        by_head.copy_(y.view_as(by_head))
        if self.tokens is not None:
            inside = self.inside[lo : lo + n].flatten()
            tokens, rows = self.tokens[lo : lo + n].flatten()[inside], rows[0][inside].to(out.dtype)
            out[0].index_add_(0, tokens, rows) if add else out[0].index_copy_(0, tokens, rows)
            return
        t = lo * self.C
        there = min(n * self.C, self.T - t)
        place = out[:, t : t + there]
        place.add_(rows[:, :there]) if add else place.copy_(rows[:, :there])

    def scan(
        self,
        x: Tensor,
        y: Tensor,
        decay: Tensor,
        carry: Tensor,
        tile: Tile,
        to_left: bool,
        first: Tensor | None,
        last: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """``state = decay * state + x^T y`` over the chunks of a tile.

        Args:
            x: ``[N, C, K]``; y is ``[N, C, V]``, decay ``[N, K, 1]`` or ``[N, 1, 1]``.
            carry: ``[B, H, K, V]``, the state that comes from the neighbouring tile.
            to_left: the direction of the walk.
            first: ``[S, B, H, K, V]``, the state that each sequence begins with; zeros if None.
            last: receives the state that each sequence ends with.

        Returns:
            the states that enter the chunks, ``[N, K, V]``, and the one that leaves the tile, in memory of its own.
        """
        n, (B, H, K, V) = tile[1], carry.shape
        states = self.work((n + 1) * B * H, K, V)
        by_chunk = self.work.split(states, n + 1)
        decay_of = self.work.split(self.work(*decay.shape).copy_(decay), n)
        by_chunk[n if to_left else 0].view_as(carry).copy_(carry)
        left, right = states[: n * B * H], states[B * H :]
        updates, entering = (left, right) if to_left else (right, left)
        torch.bmm(x.mT, y, out=updates)

        begins, ends = (self.ends, self.starts) if to_left else (self.starts, self.ends)
        for c in range(n - 1, -1, -1) if to_left else range(n):
            into, out = (by_chunk[c + 1], by_chunk[c]) if to_left else (by_chunk[c], by_chunk[c + 1])
            begun = begins.get(tile[0] + c)
            if begun is not None:
                into.zero_() if first is None else into.view_as(carry).copy_(first[begun])
            out.addcmul_(decay_of[c], into)
            ended = ends.get(tile[0] + c)
            if ended is not None and last is not None:
                last[ended].copy_(out.view_as(carry))
        return entering, by_chunk[0 if to_left else n].view_as(carry).clone()
