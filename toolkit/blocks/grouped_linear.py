"""Linear maps with separate weights for each of several groups, as one batched product."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """``y[g] = x[g] W[g] + b[g]``: group ``g`` never sees another group.

    The same numbers as a 1 x 1 convolution with groups, whose many small kernels are slow on a CPU.

    Args:
        num_groups: G.
        in_dim: channels of an input.
        out_dim: channels of an output.
        bias: whether there is a ``b``.
        fan_in: weights and bias start uniform in ``+-1 / sqrt(fan_in)``; None: ``in_dim``.
    """

    def __init__(self, num_groups: int, in_dim: int, out_dim: int, *, bias: bool = True, fan_in: int | None = None):
        super().__init__()
        bound = (fan_in or in_dim) ** -0.5
        self.weight = nn.Parameter(torch.empty(num_groups, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_groups, 1, out_dim).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """``[G, N, in_dim]`` to ``[G, N, out_dim]``; ``added``, broadcast to the output, saves a pass over it."""
        if self.bias is not None:
            added = self.bias if added is None else added + self.bias
        return torch.bmm(x, self.weight) if added is None else torch.baddbmm(added, x, self.weight)

    def extra_repr(self) -> str:
        num_groups, in_dim, out_dim = self.weight.shape
        return f"num_groups={num_groups}, in_dim={in_dim}, out_dim={out_dim}, bias={self.bias is not None}"
