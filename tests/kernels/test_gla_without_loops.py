"""The form of gated linear attention for exporters against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from toolkit.kernels._common.backends import exporting
from toolkit.kernels.bidirectional_gla import bidirectional_gla
from toolkit.kernels.gla import gla
from toolkit.kernels.gla.reference import CHUNK


def example(T: int, decay: float = 1.0, B: int = 2, H: int = 2, K: int = 8, V: int = 12) -> list[Tensor]:
    """q, k, v, the gates of both directions and a first state."""
    q, k, v = torch.randn(B, T, H, K), torch.randn(B, T, H, K), torch.randn(B, T, H, V)
    return [q, k, v, -decay * torch.rand(B, T, H, K), -decay * torch.rand(B, T, H, K), torch.randn(B, H, K, V)]


def check(inputs: list[Tensor], tolerance: float = 1e-6) -> None:
    q, k, v, g, backward, state = inputs
    with exporting():
        found = [*gla(q, k, v, g, initial_state=state), gla(q, k, v, g)[0], bidirectional_gla(q, k, v, g, backward)]
    q, k, v, g, backward, state = (x.double() for x in inputs)
    exact = [*gla(q, k, v, g, initial_state=state), gla(q, k, v, g)[0], bidirectional_gla(q, k, v, g, backward)]
    for x, y in zip(found, exact, strict=True):
        assert x.shape == y.shape
        assert float((x.double() - y).norm() / y.norm()) <= tolerance


@pytest.mark.parametrize("T", [1, CHUNK - 1, CHUNK, CHUNK + 1, 100])
def test_lengths(T):
    check(example(T))


@pytest.mark.parametrize("decay", [0.0, 1e-3, 5.0, 40.0, 360.0, 1e30])
def test_every_decay(decay):
    check(example(70, decay))


def test_erasing():
    inputs = example(70)
    inputs[3][:, ::7] = inputs[4][:, 1::5] = -torch.inf
    check(inputs)


def test_mild_tokens_among_erased_ones_keep_their_digits():
    inputs = example(70, 1e-4)
    inputs[3][:, :20] = inputs[4][:, 50:] = -1e5
    check(inputs)


class Both(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, g_forward: Tensor, g_backward: Tensor) -> Tensor:
        return bidirectional_gla(q, k, v, g_forward, g_backward)


def test_one_program_serves_all_lengths():
    auto = torch.export.Dim.AUTO
    with exporting():
        program = torch.export.export(
            Both(), tuple(example(40)[:5]), dynamic_shapes=({0: auto, 1: auto},) * 5, strict=False
        )
    assert not any("gated" in str(node.target) for node in program.graph.nodes)
    for B, T in ((1, 16), (3, 75)):
        inputs = example(T, B=B)[:5]
        torch.testing.assert_close(program.module()(*inputs), bidirectional_gla(*inputs), rtol=1e-5, atol=1e-5)


def test_tracing():
    inputs = example(40)[:5]
    traced = torch.jit.trace(Both(), inputs)
    torch.testing.assert_close(traced(*inputs), bidirectional_gla(*inputs), rtol=1e-5, atol=1e-5)
