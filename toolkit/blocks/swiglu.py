"""The gated perceptron of two linear maps around a SwiGLU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

from toolkit.kernels._common.dispatch import runs_fast_on_cpu

TILE = 256  # tokens whose hidden channels stay in the cache


class SwiGLU(nn.Module):
    """``W2 (silu(a) * b)`` with ``[a, b] = W1 x``, without biases.

    Source: "GLU Variants Improve Transformer", Shazeer, arXiv 2002.05202.

    Args:
        dim: channels in and out.
        hidden: channels of ``a`` and of ``b``.
    """

    def __init__(self, dim: int, hidden: int, device: Any = None, dtype: Any = None):
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden, bias=False, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., dim]`` to ``[..., dim]``."""
        return swiglu_mlp(x, self.fc1.weight, self.fc2.weight)


@register_notrace_function
def swiglu_mlp(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    """``SwiGLU``'s map of ``[..., dim]``; a leaf for tracers, since inference walks over tiles of tokens."""
    if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript skips the body of exactly this condition
        if not torch.is_grad_enabled() and runs_fast_on_cpu(x, weight1, weight2):
            return _in_tiles(x, weight1, weight2)
    a, b = F.linear(x, weight1).chunk(2, dim=-1)
    return F.linear(F.silu(a) * b, weight2)


def _in_tiles(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    """Without the large hidden tensor: less memory, and the gate never leaves the cache."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for tokens, out in zip(x.reshape(-1, x.shape[-1]).split(TILE), y.view(-1, y.shape[-1]).split(TILE), strict=True):
        a, b = torch.mm(tokens, weight1.t()).chunk(2, dim=-1)
        torch.mm(F.silu(a).mul_(b), weight2.t(), out=out)
    return y
