"""The fast gate against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.kernels.linear_gate import cpu, linear_gate, reference


def example(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    d = shape[-1]
    shapes = [shape, shape, (d, d), (d,), (d, d), (d,)]
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (1, 1, 1)])
def test_fast_equals_definition(shape: tuple[int, ...]) -> None:
    inputs = example(*shape)
    outputs = [form.linear_gate(*inputs) for form in (cpu, reference)]
    fast, exact = ([y, *torch.autograd.grad(y.square().sum(), inputs)] for y in outputs)
    torch.testing.assert_close(fast, exact, rtol=1e-5, atol=1e-5)


def test_gradcheck_twice() -> None:
    inputs = example(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(cpu.linear_gate, inputs)
    assert torch.autograd.gradgradcheck(cpu.linear_gate, inputs)


def test_transposed_streams() -> None:
    a, b, *weights = example(4, 3, 5)
    a, b = a.detach().transpose(0, 1), b.detach().transpose(0, 1)
    torch.testing.assert_close(linear_gate(a, b, *weights), reference.linear_gate(a, b, *weights))
