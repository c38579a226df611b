"""Pieces of the gated recursive convolution for CPUs, in float32: the depthwise convolution and the gating chain.

The library's weight gradient of a depthwise convolution takes many times as long as its forward; here it is one
product per channel, of the k row shifts of the output's gradient and the k column shifts of the input. The gating chain
keeps p_i and computes the 1x1 convolutions again. Legend: B batch, C channels, H W height and width, k kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 1 << 16  # values of a few channels whose k shifts stay in the cache


def widened(entry: Any) -> Any:
    """Weights in float32."""
    if isinstance(entry, (tuple, list)):
        return tuple(weight.float() for weight in entry)
    return entry if entry is None else entry.float()


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0]).contiguous()


def depthwise_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dy = dy.contiguous()
    dx = depthwise(dy, weight.flip(2, 3), None)
    return dx, depthwise_weight_gradient(dy, x, weight.shape[-1]), dy.sum((0, 2, 3))


def depthwise_weight_gradient(dy: Tensor, x: Tensor, k: int) -> Tensor:
    """``dW[c, i, j] = sum dy[b, c, h, w] x[b, c, h + i - k//2, w + j - k//2]``, ``[C, 1, k, k]``."""
    (B, C, H, W), pad = x.shape, k // 2
    dweight = x.new_zeros(C, 1, k, k)
    if not x.numel():
        return dweight
    rows = H + 2 * pad
    step = max(1, TILE // (B * rows * W))
    down = x.new_zeros(B, min(step, C), k, rows, W)  # the zeros between the shifted copies are never written
    for c in range(0, C, step):
        padded = F.pad(x[:, c : c + step], (pad, pad, pad, pad))
        n = padded.shape[1]
        across = padded.unfold(3, W, 1).transpose(2, 3).reshape(B * n, k, rows * W)
        for i in range(k):
            down[:, :n, i, i : i + H] = dy[:, c : c + step]
        products = torch.bmm(down[:, :n].reshape(B * n, k, rows * W), across.mT)
        torch.sum(products.view(B, n, k, k), 0, out=dweight[c : c + step, 0])
    return dweight


def chain(a: Tensor, b: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """See ``reference.gated_recursion``."""
    first, *factors = split(b, weights, a.shape[1])
    steps = [torch.mul(a, first)]
    for weight, bias, factor in zip(weights, biases, factors, strict=True):
        steps.append(mixed(steps[-1], weight, bias).mul_(factor))
    return steps


def chain_backward(
    dsteps: Sequence[Tensor | None],
    a: Tensor,
    b: Tensor,
    steps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of a, b, the weights, then the biases."""
    da, db = torch.empty(a.shape, device=a.device), torch.empty(b.shape, device=b.device)
    dweights: list[Tensor] = []
    dbiases: list[Tensor] = []
    first, *factors = split(b, weights, a.shape[1])
    dfirst, *dfactors = split(db, weights, a.shape[1])
    dp = torch.zeros_like(steps[-1]) if dsteps[-1] is None else dsteps[-1]
    for i in range(len(weights) - 1, -1, -1):
        torch.mul(dp, mixed(steps[i], weights[i], biases[i]), out=dfactors[i])
        dz = torch.mul(dp, factors[i]).flatten(2)
        weight = weights[i].flatten(1)
        dweights.insert(0, torch.zeros_like(weight).addbmm_(dz, steps[i].flatten(2).mT).view(weights[i].shape))
        dbiases.insert(0, dz.sum((0, 2)))
        dp = torch.bmm(weight.t().expand(len(dz), -1, -1), dz).view(steps[i].shape)
        dp = dp if (direct := dsteps[i]) is None else dp.add_(direct)
    torch.mul(dp, first, out=da)
    torch.mul(dp, a, out=dfirst)
    return [da, db, *dweights, *dbiases]


def split(b: Tensor, weights: Sequence[Tensor], w0: int) -> tuple[Tensor, ...]:
    return b.split([w0, *(weight.shape[0] for weight in weights)], 1)


def mixed(p: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The 1x1 convolution as a product over channels."""
    offsets, rows = bias[None, :, None].expand(len(p), -1, 1), weight.flatten(1).expand(len(p), -1, -1)
    return torch.baddbmm(offsets, rows, p.flatten(2)).unflatten(2, p.shape[2:])
