"""A gate between two streams: ``linear_gate(a, b, weight_a, bias_a, weight_b, bias_b)``."""

from __future__ import annotations

from torch import Tensor

from toolkit.kernels._common.dispatch import runs_fast_on_cpu
from toolkit.kernels.linear_gate import cpu, reference

__all__ = ["linear_gate"]


def linear_gate(a: Tensor, b: Tensor, weight_a: Tensor, bias_a: Tensor, weight_b: Tensor, bias_b: Tensor) -> Tensor:
    """``g * a + (1 - g) * b`` with ``g = sigmoid(W_a a + b_a + W_b b + b_b)``, per channel.

    Args:
        a: ``[..., d]``.
        b: ``[..., d]``.
        weight_a: ``[d, d]``, as of ``torch.nn.Linear``; so is ``weight_b``. The biases are ``[d]``.
    """
    form = cpu if runs_fast_on_cpu(a, b, weight_a, weight_b) else reference
    return form.linear_gate(a, b, weight_a, bias_a, weight_b, bias_b)
