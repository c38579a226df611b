"""Gated fusion of two streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.kernels.linear_gate import linear_gate


class GatedFusion(nn.Module):
    """``g * a + (1 - g) * b`` with the openness ``g = sigmoid(W_a a + b_a + W_b b + b_b)`` per channel.

    Source: gates 1 and 2 of Gateformer, arXiv 2505.00307, section 3.

    Args:
        dim: number of channels of both streams.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.linear_a = nn.Linear(dim, dim)
        self.linear_b = nn.Linear(dim, dim)

    def gate(self, a: Tensor, b: Tensor) -> Tensor:
        """Openness for ``a``: 1 passes ``a``, 0 passes ``b``; shape ``[..., dim]`` as the inputs."""
        return torch.sigmoid(self.linear_a(a) + self.linear_b(b))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        to_a, to_b = self.linear_a, self.linear_b
        return linear_gate(a, b, to_a.weight, to_a.bias, to_b.weight, to_b.bias)
