"""Orders of batches: deterministic, resumable, complete, and the same for any number of processes."""

from __future__ import annotations

import pytest
import torch

from toolkit.data.loaders import epoch_batches, epoch_order, eval_batches


def batches(**options):
    return list(epoch_batches(**{"num_samples": 23, "batch_size": 5, "seed": 3, "epoch": 0, **options}))


def test_an_epoch_holds_every_sample_once_and_keeps_the_last_batch():
    parts = batches()
    assert [len(indices) for indices, _ in parts] == [5, 5, 5, 5, 3]
    assert sorted(torch.cat([indices for indices, _ in parts]).tolist()) == list(range(23))
    assert {weight for _, weight in parts} == {1.0}


def test_order_depends_on_seed_and_epoch_alone():
    first = epoch_order(100, seed=1, epoch=2)
    torch.manual_seed(99)
    assert torch.equal(first, epoch_order(100, seed=1, epoch=2))
    for seed, epoch in [(2, 1), (1, 3), (3, 2), (0, 0)]:
        assert not torch.equal(first, epoch_order(100, seed=seed, epoch=epoch))


def test_plain_order():
    assert torch.cat([indices for indices, _ in batches(shuffle=False)]).tolist() == list(range(23))


@pytest.mark.parametrize("start", [0, 1, 4, 5, 9])
def test_start_leaves_out_whole_batches(start):
    rest = batches(start=start)
    expected = batches()[start:]
    assert len(rest) == len(expected)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(rest, expected, strict=True))


@pytest.mark.parametrize("world", [2, 3, 4, 7])
def test_processes_share_each_batch_and_average_to_its_mean(world):
    losses = torch.randn(23, dtype=torch.float64)
    parts = [batches(rank=rank, world=world) for rank in range(world)]
    assert {len(part) for part in parts} == {5}
    for step, (indices, _) in enumerate(batches()):
        shares = [part[step] for part in parts]
        assert torch.equal(torch.cat([own for own, weight in shares if weight]), indices)
        average = sum(weight * losses[own].mean() for own, weight in shares) / world
        torch.testing.assert_close(average, losses[indices].mean())
        assert all(len(own) for own, _ in shares)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("num_samples", [1, 2, 8, 9, 23])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluation_sees_every_sample_once_in_order(world, num_samples, batch_size):
    parts = [list(eval_batches(num_samples, batch_size, rank, world)) for rank in range(world)]
    together = [part[number] for number in range(len(parts[0])) for part in parts if number < len(part)]
    alone = list(eval_batches(num_samples, batch_size))
    assert [batch.tolist() for batch in together] == [batch.tolist() for batch in alone]
    assert torch.cat(alone).tolist() == list(range(num_samples))
    assert all(0 < len(batch) <= batch_size for batch in alone)


def test_nothing_to_do():
    assert batches(num_samples=0) == []
    assert list(eval_batches(0, 4)) == []
