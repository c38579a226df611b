"""Gated fusion and window normalisation."""

from __future__ import annotations

import pytest
import torch

from toolkit.blocks.fusion import GatedFusion
from toolkit.blocks.normalization import instance_normalise


def test_fusion_blends_by_its_gate() -> None:
    torch.manual_seed(0)
    fusion = GatedFusion(6)
    a, b = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    gate = fusion.gate(a, b)
    assert gate.shape == a.shape
    torch.testing.assert_close(fusion(a, b), gate * a + (1 - gate) * b)
    torch.testing.assert_close(gate, torch.sigmoid(fusion.linear_a(a) + fusion.linear_b(b)))


def test_gate_is_reachable_from_a_hook() -> None:
    fusion, seen = GatedFusion(4), []
    fusion.register_forward_hook(lambda module, inputs, _output: seen.append(module.gate(*inputs)))
    fusion(torch.zeros(2, 4), torch.zeros(2, 4))
    assert 0 < seen[0].mean() < 1


def test_instance_normalise() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 50, 3).transpose(1, 2) * 4 + 100
    z, mean, scale = instance_normalise(x)
    torch.testing.assert_close(mean, x.mean(-1, keepdim=True))
    torch.testing.assert_close(scale, (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt())
    torch.testing.assert_close(z * scale + mean, x)


def test_instance_normalise_constant_series() -> None:
    z, mean, scale = instance_normalise(torch.full((1, 1, 8), 7.0))
    assert torch.equal(z, torch.zeros_like(z))
    assert mean.item() == 7
    torch.testing.assert_close(scale.item(), 1e-5**0.5)


@pytest.mark.parametrize("create_graph", [False, True])
def test_one_stream_passed_twice_gets_its_gradient_once(create_graph: bool) -> None:
    fusion = GatedFusion(4)
    x = torch.randn(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(fusion(x, x).square().sum(), x, create_graph=create_graph)
    torch.testing.assert_close(gradient, 2 * x)  # g x + (1 - g) x is x, whatever the gate
