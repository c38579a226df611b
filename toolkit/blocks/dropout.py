"""Dropout that draws its masks quickly on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from toolkit.kernels.dropout import dropout


class Dropout(nn.Module):
    """``torch.nn.Dropout`` with cheaper random numbers: same rate, same scaling, same generator."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
