"""The definition of a gate between two streams that two linear maps open."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_gate(a: Tensor, b: Tensor, weight_a: Tensor, bias_a: Tensor, weight_b: Tensor, bias_b: Tensor) -> Tensor:
    """``g * a + (1 - g) * b`` with ``g = sigmoid(W_a a + b_a + W_b b + b_b)``."""
    gate = torch.sigmoid(F.linear(a, weight_a, bias_a) + F.linear(b, weight_b, bias_b))
    return gate * a + (1 - gate) * b
