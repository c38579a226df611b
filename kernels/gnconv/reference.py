"""The definition of the gated recursive convolution of HorNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Weights(NamedTuple):
    """Parameters, as of ``nn.Conv2d``; d channels inside, widths ``w_i = d / 2^(n-1-i)`` of an order n."""

    proj_in_weight: Tensor  # [2d, c, 1, 1]
    proj_in_bias: Tensor
    dwconv_weight: Tensor  # [2d - w_0, 1, k, k], k odd
    dwconv_bias: Tensor
    pws_weights: tuple[Tensor, ...]  # [w_(i+1), w_i, 1, 1] for i = 0 .. n-2
    pws_biases: tuple[Tensor, ...]
    proj_out_weight: Tensor | None  # [o, d, 1, 1]
    proj_out_bias: Tensor | None


def gnconv(x: Tensor, weights: Weights, scale: float) -> tuple[Tensor, list[Tensor]]:
    """Output and the recursion's values p_0 .. p_(n-1)."""
    a, rest = F.conv2d(x, weights.proj_in_weight, weights.proj_in_bias).split(parts(weights), 1)
    k, channels = weights.dwconv_weight.shape[-1], rest.shape[1]
    b = scale * F.conv2d(rest, weights.dwconv_weight, weights.dwconv_bias, padding=k // 2, groups=channels)
    steps = gated_recursion(a, b, weights.pws_weights, weights.pws_biases)
    return project_out(steps[-1], weights), steps


def gated_recursion(a: Tensor, b: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """``p_0 = a * b_0``, ``p_(i+1) = (W_i p_i + c_i) * b_(i+1)``; the b_i are ``b`` cut into ascending widths."""
    first, *factors = b.split([a.shape[1], *(weight.shape[0] for weight in weights)], 1)
    steps = [a * first]
    for weight, bias, factor in zip(weights, biases, factors, strict=True):
        steps.append(F.conv2d(steps[-1], weight, bias) * factor)
    return steps


def project_out(p: Tensor, weights: Weights) -> Tensor:
    return p if weights.proj_out_weight is None else F.conv2d(p, weights.proj_out_weight, weights.proj_out_bias)


def parts(weights: Weights) -> list[int]:
    """Channels that enter the recursion at once, w_0, and those that are convolved first."""
    convolved = weights.dwconv_weight.shape[0]
    return [weights.proj_in_weight.shape[0] - convolved, convolved]
