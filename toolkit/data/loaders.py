"""Which samples form which batch: orders that can be resumed and divided among processes, for any task."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> Tensor:
    """A permutation of the samples, int64 [num_samples], that depends on seed and epoch alone."""
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
    return torch.randperm(num_samples, generator=torch.Generator().manual_seed(mixed))


def epoch_batches(
    num_samples: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    shuffle: bool = True,
) -> Iterator[tuple[Tensor, float]]:
    """The batches of one epoch; every process gets as many, and the last is kept however short.

    Args:
        batch_size: samples of all processes together.
        seed: not negative.
        start: batches to leave out, for going on within an epoch.
        rank: this process; each gets a contiguous part of every batch.
        world: number of processes.

    Yields:
        Indices of this process, int64 [B], and the weight of their mean loss: the average of weight x mean over the
        processes is the mean over the whole batch. A process that the last batch leaves without a sample gets one
        index of weight 0.
    """
    order = epoch_order(num_samples, seed=seed, epoch=epoch) if shuffle else torch.arange(num_samples)
    for batch in order[start * batch_size :].split(batch_size) if start * batch_size < num_samples else ():
        own = batch.tensor_split(world)[rank]
        weight = len(own) * world / len(batch)
        yield (own if len(own) else batch[:1]), weight


def eval_batches(num_samples: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
    """Every ``world``-th batch, in order; over all processes every sample occurs once.

    The batches are those of a single process, so that a sample's output does not depend on the number of processes.

    Args:
        batch_size: samples of one batch.

    Yields:
        Indices, int64 [B], never empty.
    """
    yield from torch.arange(num_samples).split(batch_size)[rank::world] if num_samples else ()
