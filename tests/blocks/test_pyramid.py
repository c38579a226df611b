"""HorFPN and the fusion of levels."""

from __future__ import annotations

import pytest
import torch

from toolkit.blocks.pyramid import FusionConv, HorFPN
from toolkit.errors import InputError

MAPS = [(8, 24, 36), (16, 12, 18), (32, 6, 9), (64, 3, 5)]  # the last is no half of the one before


@pytest.mark.parametrize("filter_size", [None, (32, 17)])
@pytest.mark.parametrize("grad", [False, True])
def test_the_neck_gives_one_width_at_all_sizes(filter_size, grad):
    neck = HorFPN([8, 16, 32, 64], 24, num_outs=6, filter_size=filter_size)
    with torch.set_grad_enabled(grad):
        outs = neck([torch.randn(2, *shape) for shape in MAPS])
    assert [tuple(out.shape[1:]) for out in outs] == [(24, *s[1:]) for s in MAPS] + [(24, 2, 3), (24, 1, 2)]
    assert torch.equal(outs[4], outs[3][:, :, ::2, ::2])


def test_coarse_maps_reach_the_finest():
    neck = HorFPN([8, 16], 8, num_outs=2)
    maps = [torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4, requires_grad=True)]
    neck(maps)[0].sum().backward()
    assert maps[1].grad.abs().sum() > 0


def test_fusion_keeps_the_map_and_learns():
    module = FusionConv(40, 16, dim_ratio=2)
    y = module(torch.randn(2, 40, 11, 8))
    assert y.shape == (2, 16, 11, 8)
    assert y.min() == 0  # ReLU
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert FusionConv(40, 16, dim_ratio=2, proj_out=False)(torch.randn(2, 40, 4, 4)).shape == (2, 32, 4, 4)


def test_wrong_numbers_of_maps_are_refused():
    with pytest.raises(InputError, match="num_outs is 1, but there are 2 in_dims. Raise num_outs"):
        HorFPN([8, 16], 8, num_outs=1)
    with pytest.raises(InputError, match="3 maps for a neck of 2"):
        HorFPN([8, 16], 8)([torch.zeros(1, 8, 4, 4)] * 3)
