"""The parallel gated network (PGN): a gated unit whose every step sees the whole past without recurrence.

"PGN: The RNN's New Successor is Effective for Long-Range Time Series Forecasting", Jia et al., NeurIPS 2024,
arXiv 2409.17703, section 3. One linear map reads all previous steps at once (the paper's historical information
extraction layer), one gate joins what it finds with the current step, so all steps are computed together and the way
from any step to any other has length one.

Legend: G groups with weights of their own, N sequences, T steps, C channels in, D channels out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.blocks.grouped_linear import GroupedLinear
from toolkit.errors import InputError

DIRECT_NUMBERS = 1 << 17
"""Largest ``T C x T D`` matrix whose product is faster than going through values at points (measured on a CPU)."""


class ParallelGatedUnit(nn.Module):
    """``out[t] = s h[t] + (1 - s) c``, where ``h`` is the history of step t and the gate sees it and the step itself.

    ``s = sigmoid(W_s [x[t]; h[t]] + b_s)`` and ``c = tanh(W_c [x[t]; h[t]] + b_c)``. The unit is causal: ``out[t]``
    depends on steps ``0 ... t``. Alone it mixes sequences ``[N, T, C]``; with ``num_groups`` it is as many units side
    by side, on ``[G, N, T, C]``.

    Args:
        in_dim: C.
        dim: D.
        length: longest sequence, at least 2; the history has one weight matrix for each of the ``length - 1`` lags.
        num_groups: G; None: one unit, and no axis for it.

    Raises:
        InputError: a size that cannot be, or a sequence that is longer than ``length``.
    """

    def __init__(self, in_dim: int, dim: int, length: int, num_groups: int | None = None):
        super().__init__()
        for name, size, least in (
            ("in_dim", in_dim, 1),
            ("dim", dim, 1),
            ("length", length, 2),
            ("num_groups", 1 if num_groups is None else num_groups, 1),
        ):
            if size < least:
                raise InputError(f"{name} is {size}", f"It must be at least {least}")
        self.in_dim, self.dim, self.length, self.num_groups = in_dim, dim, length, num_groups
        groups, fan_in = 1 if num_groups is None else num_groups, in_dim + dim
        self.history = HistoryLayer(in_dim, dim, length, groups)
        # The paper's one map of [x; h] in two parts, which spares the concatenation; first D columns: s, last D: c.
        self.gate_input = GroupedLinear(groups, in_dim, 2 * dim, fan_in=fan_in)
        self.gate_history = GroupedLinear(groups, dim, 2 * dim, bias=False, fan_in=fan_in)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, C]`` to ``[N, T, D]``, or ``[G, N, T, C]`` to ``[G, N, T, D]``."""
        grouped = x if self.num_groups is not None else x[None]
        if grouped.dim() != 4 or (len(grouped), x.shape[-1]) != (self.num_groups or 1, self.in_dim):
            wanted = "[N, T, C]" if self.num_groups is None else f"[G, N, T, C] with G = {self.num_groups}"
            raise InputError(f"the input has shape {list(x.shape)}", f"Give {wanted} and C = {self.in_dim}")
        if x.shape[-2] > self.length:
            raise InputError(f"a sequence of {x.shape[-2]} steps is longer than length {self.length}", "Raise length")

        history = self.history(grouped)  # [G, N, T, D]
        steps, past = grouped.flatten(1, 2), history.flatten(1, 2)  # [G, N T, .]
        openness, candidate = self.gate_history(past, added=self.gate_input(steps)).chunk(2, dim=-1)
        out = torch.lerp(candidate.tanh(), past.to(candidate.dtype), openness.sigmoid())
        return out.view(*x.shape[:-1], self.dim)


class HistoryLayer(nn.Module):
    """``h[t] = b + sum_l x[t - l] K_l`` over the lags ``l = 1 ... length - 1``, with zeros before the first step.

    Short sequences take one product with the block-triangular matrix of all ``K_l``. For long ones that is too much
    arithmetic (T^2 C D), so they are multiplied as polynomials: the values of both at M >= T - 1 points, a product per
    point, and back. The points are the roots of ``z^M = -i``: modulo ``z^M + i`` the low half of the product of two
    real polynomials is the real part of the result, and the high half, which would belong to steps after the last, the
    imaginary part. So nothing is padded to twice its length, and no point is the conjugate of another. Values and their
    inverse are two matrix products each (M = M1 M2, one step of Cooley and Tukey): at these lengths that is faster on a
    CPU than a Fourier transform, whose complex numbers must be reordered for the products.

    Args:
        in_dim: C.
        dim: D.
        length: longest sequence.
        num_groups: G.
    """

    def __init__(self, in_dim: int, dim: int, length: int, num_groups: int):
        super().__init__()
        bound = (in_dim * (length - 1)) ** -0.5
        self.weight = nn.Parameter(torch.empty(num_groups, length - 1, in_dim, dim).uniform_(-bound, bound))  # lag 1 on
        self.bias = nn.Parameter(torch.empty(num_groups, 1, 1, dim).uniform_(-bound, bound))
        # Constants in float64, not buffers: a module that is cast and cast back must not lose their digits.
        direct = length * in_dim * length * dim <= DIRECT_NUMBERS
        self._evaluation = None if direct else evaluation_matrices(length - 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[G, N, T, C]`` to ``[G, N, T, D]``."""
        weight = self.weight[:, : x.shape[2] - 1]
        if x.shape[2] == 1:
            return self.bias.expand(-1, x.shape[1], 1, -1)
        if self._evaluation is None:
            return self._direct(x, weight)
        with torch.autocast(x.device.type, enabled=False):  # values at M points need all digits of float32
            history = self._by_values(x.to(weight.dtype), weight)
        return F.pad(history.to(x.dtype), (0, 0, 1, 0)) + self.bias

    def _direct(self, x: Tensor, weight: Tensor) -> Tensor:
        groups, num, steps, in_dim = x.shape
        dim = weight.shape[-1]
        # Rows of 2T - 1 out of T copies of the 2T blocks (0, K_1 ... K_{T-1}, zeros): each is the one before, moved by
        # one. The first T of each are the block rows of the matrix.
        blocks = F.pad(weight, (0, 0, 0, 0, 1, steps)).unsqueeze(1).expand(-1, steps, -1, -1, -1)
        rows = blocks.flatten(1, 2)[:, : steps * (2 * steps - 1)].unflatten(1, (steps, 2 * steps - 1))
        matrix = rows[:, :, :steps].transpose(2, 3).reshape(groups, steps * in_dim, steps * dim)
        bias = self.bias.expand(-1, -1, steps, -1).reshape(groups, 1, steps * dim)
        return torch.baddbmm(bias, x.reshape(groups, num, -1), matrix).view(groups, num, steps, dim)

    def _by_values(self, x: Tensor, weight: Tensor) -> Tensor:
        """The histories of steps 1 ... T - 1 without bias, ``[G, N, T - 1, D]``."""
        groups, num, steps, in_dim = x.shape
        dim = weight.shape[-1]
        assert self._evaluation is not None
        outer, inner = (matrix.to(x.device, x.dtype) for matrix in self._evaluation)
        size_1, size_2 = outer.shape[1], inner.shape[1] // 2
        points = size_1 * size_2

        def values(coefficients: Tensor) -> Tensor:
            """``[T - 1, S]`` to real and imaginary parts ``[M, 2, S]``."""
            padded = F.pad(coefficients, (0, 0, 0, points - (steps - 1)))
            half = (outer @ padded.view(size_1, -1)).view(size_1, 2 * size_2, -1)
            return torch.bmm(inner, half).view(points, 2, -1)

        at_x = values(x[:, :, :-1].permute(2, 0, 1, 3).reshape(steps - 1, -1)).view(points, 2, groups, num, in_dim)
        at_weight = values(weight.transpose(0, 1).reshape(steps - 1, -1)).view(points, 2, groups, in_dim, dim)

        # The complex product as a real one: [[re, -im], [im, re]] [re; im].
        real, imaginary = at_x.unbind(1)
        left = torch.cat((torch.cat((real, -imaginary), -1), torch.cat((imaginary, real), -1)), dim=2)
        right = at_weight.transpose(1, 2).reshape(points * groups, 2 * in_dim, dim)
        product = torch.bmm(left.flatten(0, 1), right).view(points, groups, 2, num * dim)

        half = torch.bmm(inner.transpose(1, 2), product.transpose(1, 2).reshape(size_1, 2 * size_2, -1))
        real = outer.t() @ half.view(2 * size_1, -1) / points
        return real.view(points, groups, num, dim)[: steps - 1].permute(1, 2, 0, 3)


def evaluation_matrices(num_coefficients: int) -> tuple[Tensor, Tensor]:
    """Matrices that evaluate polynomials of ``num_coefficients`` coefficients at the M = M1 M2 roots of ``z^M = -i``.

    Coefficient ``M2 t1 + t2`` and point ``z_k = exp(-2 pi i (k + 1/4) / M)``, ``k = k1 + M1 k2``: the first matrix sums
    over t1, the second over t2. Their transposes, divided by M, interpolate.

    Returns:
        float64 ``[2 M1, M1]``, rows (k1, real or imaginary), and ``[M1, 2 M2, 2 M2]`` for each k1, rows (k2, real or
        imaginary), columns (real or imaginary, t2).
    """
    size_2 = max(1, round(math.sqrt(num_coefficients / 2)))  # least arithmetic: the first matrix has half the planes
    size_1 = -(-num_coefficients // size_2)
    k1, k2 = torch.arange(size_1, dtype=torch.float64) + 0.25, torch.arange(size_2, dtype=torch.float64)
    angle = -2 * math.pi / size_1 * k1[:, None] * torch.arange(size_1)
    outer = torch.stack((angle.cos(), angle.sin()), dim=1).flatten(0, 1)
    angle = -2 * math.pi / (size_1 * size_2) * (k1[:, None, None] + size_1 * k2[:, None]) * torch.arange(size_2)
    real, imaginary = angle.cos(), angle.sin()
    rows = torch.stack((torch.cat((real, -imaginary), -1), torch.cat((imaginary, real), -1)), dim=2)
    return outer, rows.flatten(1, 2)
