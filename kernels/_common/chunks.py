"""Sequences cut into chunks, and chunks grouped into tiles of time: copies in and out, and the scan over chunks.

Legend: B batch, T time, H heads, K key width, V value width, D either; C tokens of a chunk, n chunks of a tile,
N = n B H; S packed sequences, or 1 for a batch of equal lengths.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from toolkit.kernels._common.memory import Workspace

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
    for b in range(0, B, step):
        yield slice(b, b + step), Chunks((min(step, B - b), T, H), bounds, q.device, length)


class Chunks:
    """Which token stands in which chunk. Chunks never straddle sequences; the last one of each is padded with zeros.

    Args:
        shape: B, T, H.
        bounds: first token of each packed sequence, then T (``cu_seqlens``); None for a batch of equal lengths.
        length: C, a power of two; at most ``CHUNK`` unless ``bounds`` is None.
    """

    def __init__(self, shape: tuple[int, int, int], bounds: Sequence[int] | None, device: torch.device, length: int):
        self.B, self.T, self.H = shape
        self.C = length
        self.lying = Workspace(device)
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
        self.tokens: Tensor | None = None
        if bounds is not None:
            tokens, beyond = torch.tensor(firsts, dtype=torch.long, device=device).view(-1, 2, 1).unbind(1)
            self.tokens = tokens + torch.arange(length, device=device)
            self.inside = self.tokens < beyond
            self.tokens.clamp_(max=max(self.T - 1, 0))

    def rows(self, n: int, D: int) -> Tensor:
        """Memory in the cache for a tile as it lies, ``[B, n C, H, D]``: the heads' pieces are sorted from and into it.

        In memory that is not in the cache these pieces of rows would cost several times as much.
        """
        self.lying.restart()
        return self.lying(self.B, n * self.C, self.H, D)

    def gather(self, x: Tensor, tile: Tile, work: Workspace | None = None) -> Tensor:
        """A copy of the tile's part of ``[B, T, H, D]``: contiguous float32 ``[N, C, D]``; ``work``: where."""
        lo, n = tile
        C, D = self.C, x.shape[-1]
        if self.tokens is not None:
            rows = x[0].index_select(0, self.tokens[lo : lo + n].flatten()).float().view(n, C, self.H, D)
            rows.masked_fill_(~self.inside[lo : lo + n, :, None, None], 0)
            return rows.transpose(1, 2).reshape(-1, C, D)
        t = lo * C
        there = min(n * C, self.T - t)
        rows = self.rows(n, D)
        rows[:, :there].copy_(x[:, t : t + there])
        if there < n * C:
            rows[:, there:].zero_()
        shape = (n, self.B, self.H, C, D)
        out = work(*shape) if work else torch.empty(shape, dtype=torch.float32, device=x.device)
        out.copy_(rows.view(self.B, n, C, self.H, D).permute(1, 0, 3, 2, 4))
        return out.view(-1, C, D)

    def scatter(self, y: Tensor, out: Tensor, tile: Tile, add: bool = False) -> None:
        """Write ``[N, C, D]`` to the tile's tokens of ``out [B, T, H, D]``, in its type, or add it to them."""
        lo, n = tile
        y = y.view(n, self.B, self.H, self.C, -1)
        if self.tokens is not None:
            inside = self.inside[lo : lo + n]
            rows = y[:, 0].transpose(1, 2)[inside].to(out.dtype)
            tokens = self.tokens[lo : lo + n][inside]
            out[0].index_add_(0, tokens, rows) if add else out[0].index_copy_(0, tokens, rows)
            return
        t = lo * self.C
        there = min(n * self.C, self.T - t)
        rows = self.rows(n, y.shape[-1])
        rows.view(self.B, n, self.C, self.H, -1).copy_(y.permute(1, 0, 3, 2, 4))
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
        work: Workspace,
    ) -> tuple[Tensor, Tensor]:
        """``state = decay * state + x^T y`` over the chunks of a tile.

        Args:
            x: ``[N, C, K]``; y is ``[N, C, V]``, decay ``[N, K, 1]``.
            carry: ``[B, H, K, V]``, the state that comes from the neighbouring tile.
            to_left: the direction of the walk.
            first: ``[S, B, H, K, V]``, the state that each sequence begins with; zeros if None.
            last: receives the state that each sequence ends with.
            work: memory for the states.

        Returns:
            the states that enter the chunks, ``[N, K, V]``, and the one that leaves the tile, in memory of its own.
        """
        n, (B, H, K, V) = tile[1], carry.shape
        states = work(n + 1, B, H, K, V)
        states[n if to_left else 0] = carry
        updates, entering = (states[:-1], states[1:]) if to_left else (states[1:], states[:-1])
        torch.bmm(x.mT, y, out=updates.view(-1, K, V))

        begins, ends = (self.ends, self.starts) if to_left else (self.starts, self.ends)
        by_chunk, factors = states.unbind(), decay.view(n, B, H, K, 1).unbind()
        for c in range(n - 1, -1, -1) if to_left else range(n):
            into, out = (by_chunk[c + 1], by_chunk[c]) if to_left else (by_chunk[c], by_chunk[c + 1])
            begun = begins.get(tile[0] + c)
            if begun is not None:
                into.zero_() if first is None else into.copy_(first[begun])
            out.addcmul_(factors[c], into)
            ended = ends.get(tile[0] + c)
            if ended is not None and last is not None:
                last[ended].copy_(out)
        return entering.view(-1, K, V), by_chunk[0 if to_left else n].clone()
