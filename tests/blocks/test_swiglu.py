"""The gated perceptron."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from toolkit.blocks.swiglu import TILE, SwiGLU


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (TILE,), (2, TILE - 1), (3, TILE + 1), (0, 4)])
@pytest.mark.parametrize("gradients", [True, False])
def test_perceptron_is_its_definition(shape, gradients):
    layer, x = SwiGLU(6, 10), torch.randn(*shape, 6)
    first, second = layer.fc1.weight[:10], layer.fc1.weight[10:]
    expected = (F.silu(x @ first.T) * (x @ second.T)) @ layer.fc2.weight.T
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_views_without_memory_of_their_own():
    layer, x = SwiGLU(6, 10), torch.randn(6, 7, 5).permute(2, 1, 0)
    with torch.no_grad():
        found = layer(x)
    torch.testing.assert_close(found, layer(x).detach())


def test_script_equals_the_layer():
    layer, x = SwiGLU(6, 10), torch.randn(4, 6)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))
