"""Dropout factors: rate, scale, independence, and the generator they come from."""

from __future__ import annotations

import pytest
import torch

from toolkit.kernels.dropout import cpu, dropout, dropout_masks, reference


@pytest.mark.parametrize("form", [cpu, reference])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_rate_and_scale(form, p: float) -> None:
    torch.manual_seed(0)
    numel = 400_000
    (mask,) = form.dropout_masks([(numel,)], p, torch.empty(0))
    kept = mask[mask != 0]
    assert torch.equal(kept, torch.full_like(kept, 1 / (1 - p)))
    assert abs(len(kept) / numel - (1 - p)) < 5 * (p * (1 - p) / numel) ** 0.5


def test_every_lane_of_a_draw_has_the_rate() -> None:
    torch.manual_seed(0)
    (mask,) = cpu.dropout_masks([(4_000_000,)], 0.1, torch.empty(0))
    rates = (mask.view(-1, 4) == 0).float().mean(0)
    assert (rates - 0.1).abs().max() < 5 * (0.09 / 1e6) ** 0.5


def test_neighbours_masks_and_draws_are_independent() -> None:
    torch.manual_seed(0)
    shapes = [(200_000,), (200_000,)]
    first, second = (mask.eq(0).float() for mask in dropout_masks(shapes, 0.2, torch.empty(0)))
    third = dropout_masks(shapes, 0.2, torch.empty(0))[0].eq(0).float()
    for a, b in ((first, second), (first, third), (first[1:], first[:-1]), (first[4:], first[:-4])):
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 5 / 200_000**0.5


def test_seed_and_generator_state_reproduce_the_masks() -> None:
    x = torch.ones(1000)
    torch.manual_seed(3)
    first = dropout(x, 0.1)
    state = torch.get_rng_state()
    second = dropout(x, 0.1)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.1), first)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.1), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_extreme_rates(p: float) -> None:
    (mask,) = cpu.dropout_masks([(3,)], p, torch.empty(0))
    assert mask.isfinite().all()


@pytest.mark.parametrize("shapes", [[()], [(0,)], [(1,), (2, 3), (5, 1, 1)]])
def test_shapes(shapes) -> None:
    masks = dropout_masks(shapes, 0.5, torch.empty(0))
    assert [tuple(mask.shape) for mask in masks] == shapes


def test_gradient_and_other_types() -> None:
    x = torch.ones(100, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.5)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert dropout(x.bfloat16(), 0.5).dtype == torch.bfloat16
    assert dropout(x, 0.0) is x
