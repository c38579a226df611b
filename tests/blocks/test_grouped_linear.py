"""Grouped linear maps are grouped 1 x 1 convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from toolkit.blocks.grouped_linear import GroupedLinear


@pytest.mark.parametrize("bias", [True, False])
def test_equals_a_grouped_convolution(bias: bool) -> None:
    layer, x = GroupedLinear(3, 4, 5, bias=bias), torch.randn(3, 7, 4)
    weight = layer.weight.transpose(1, 2).reshape(15, 4, 1)
    expected = F.conv1d(
        x.permute(1, 0, 2).reshape(7, 12, 1), weight, None if not bias else layer.bias.flatten(), 1, groups=3
    )
    torch.testing.assert_close(layer(x), expected.view(7, 3, 5).transpose(0, 1))
    added = torch.randn(3, 7, 5)
    torch.testing.assert_close(layer(x, added=added), layer(x) + added)
    torch.testing.assert_close(layer(x, added=added[:, :1]), layer(x) + added[:, :1])


def test_starts_as_a_convolution_does() -> None:
    layer = GroupedLinear(2, 100, 300)
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= 0.1
        assert parameter.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.1)
    assert GroupedLinear(2, 100, 300, fan_in=10_000).weight.abs().max() <= 0.01
