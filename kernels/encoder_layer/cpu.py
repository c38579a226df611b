"""A Transformer encoder layer for short sequences on a CPU: one function with a hand-written backward.

Such layers (some hundred tokens of some dozen channels) spend more time on the number of operations, and on the bytes
that these touch, than on arithmetic. So every operation here earns its place: no autograd node between them, heads
before sequences, which makes the copies cheap, and a softmax that is vectorised over short rows.

Legend: B sequences, N tokens, d channels, f hidden channels, h heads, e = d / h; ``rows`` are the B N tokens.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel

from toolkit.kernels._common.autograd import differentiable_gradients
from toolkit.kernels.encoder_layer import reference
from toolkit.kernels.encoder_layer.reference import Masks, Weights

SHORT = 64  # tokens; the library's own attention and softmax are good beyond
LOG2_E = math.log2(math.e)
SAFE_EXPONENT = 60.0  # 2^60, and sums of such terms, are far from the limits of float32

Saved = tuple[Tensor, ...]


def encoder_layer(
    x: Tensor, weights: Weights, masks: Masks, num_heads: int, norm_first: bool, activation: str, eps: float
) -> Tensor:
    """See ``reference.encoder_layer``."""
    return EncoderLayerFunction.apply((num_heads, norm_first, activation, eps), masks, x, *weights)


class EncoderLayerFunction(Function):
    @staticmethod
    def forward(ctx: Any, config: tuple, masks: Masks, x: Tensor, *parameters: Tensor) -> Tensor:
        num_heads, norm_first, activation, eps = config
        w = Weights(*parameters)
        rows = x.reshape(-1, x.shape[-1])

        branch, norm1 = layer_norm(rows, w.norm1_weight, w.norm1_bias, eps) if norm_first else (rows, ())
        branch, attention = attend(branch, w, masks.attention, num_heads, len(x))
        y = add_dropped(rows, branch, masks.attention_out)
        if not norm_first:
            y, norm1 = layer_norm(y, w.norm1_weight, w.norm1_bias, eps)

        branch, norm2 = layer_norm(y, w.norm2_weight, w.norm2_bias, eps) if norm_first else (y, ())
        branch, mlp = feed_forward(branch, w, masks.hidden, activation)
        y = add_dropped(y, branch, masks.mlp_out)
        if not norm_first:
            y, norm2 = layer_norm(y, w.norm2_weight, w.norm2_bias, eps)

        ctx.config = config
        ctx.save_for_backward(x, *parameters, *masks, *norm1, *norm2, *attention, *mlp)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        w, masks = Weights(*saved[:12]), Masks(*saved[12:16])
        norm1, norm2, attention, mlp = saved[16:19], saved[19:22], saved[22:28], saved[28:]
        if torch.is_grad_enabled():  # the caller will differentiate again
            definition = partial(_definition, masks=masks, config=ctx.config)
            return None, None, *differentiable_gradients(definition, (x, *w), dy)
        _, norm_first, activation, _ = ctx.config
        dy = dy.reshape(-1, x.shape[-1])

        if not norm_first:
            dy, *dnorm2 = layer_norm_backward(dy, norm2, w.norm2_weight, w.norm2_bias)
        dbranch, *dmlp = feed_forward_backward(drop(dy, masks.mlp_out), mlp, w, masks.hidden, activation)
        if norm_first:
            dbranch, *dnorm2 = layer_norm_backward(dbranch, norm2, w.norm2_weight, w.norm2_bias)
        dy = dbranch.add_(dy)

        if not norm_first:
            dy, *dnorm1 = layer_norm_backward(dy, norm1, w.norm1_weight, w.norm1_bias)
        dbranch, *dattention = attend_backward(drop(dy, masks.attention_out), attention, w, masks.attention)
        if norm_first:
            dbranch, *dnorm1 = layer_norm_backward(dbranch, norm1, w.norm1_weight, w.norm1_bias)
        return None, None, dbranch.add_(dy).view(x.shape), *dnorm1, *dattention, *dnorm2, *dmlp


def _definition(x: Tensor, *parameters: Tensor, masks: Masks, config: tuple) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # the only one that can be differentiated twice
        return reference.encoder_layer(x, Weights(*parameters), masks, *config)


def attend(rows: Tensor, w: Weights, mask: Tensor | None, num_heads: int, batch: int) -> tuple[Tensor, Saved]:
    """Multi-head self-attention, without the dropout of its result."""
    by_head = F.linear(rows, w.in_weight, w.in_bias).view(len(rows), 3 * num_heads, -1).transpose(0, 1)
    q, k, v = by_head.reshape(3, num_heads * batch, len(rows) // batch, -1)  # [h B, N, e] each
    weights = attention_weights(q, k)
    mixed = torch.bmm(drop(weights, mask), v)
    mixed = mixed.view(num_heads, len(rows), -1).transpose(0, 1).reshape(rows.shape)
    return F.linear(mixed, w.out_weight, w.out_bias), (rows, q, k, v, weights, mixed)


def attend_backward(dout: Tensor, saved: Saved, w: Weights, mask: Tensor | None) -> Saved:
    rows, q, k, v, weights, mixed = saved
    num_rows, scale = len(rows), q.shape[-1] ** -0.5
    num_heads = rows.shape[-1] // q.shape[-1]

    dmixed = torch.mm(dout, w.out_weight).view(num_rows, num_heads, -1).transpose(0, 1).reshape(v.shape)
    dscores = torch.bmm(dmixed, v.mT)
    if mask is not None:
        dscores.mul_(mask)
    dscores.mul_(weights)
    dscores.addcmul_(weights, row_sums(dscores), value=-1)

    dqkv = q.new_empty(3, *q.shape)
    dq, dk, dv = dqkv
    dq.baddbmm_(dscores, k, beta=0, alpha=scale)
    dk.baddbmm_(dscores.mT, q, beta=0, alpha=scale)
    torch.bmm(drop(weights, mask).mT, dmixed, out=dv)
    dqkv = dqkv.view(3 * num_heads, num_rows, -1).transpose(0, 1).reshape(num_rows, -1)
    return (
        torch.mm(dqkv, w.in_weight),
        torch.mm(dqkv.t(), rows),
        dqkv.sum(0),
        torch.mm(dout.t(), mixed),
        dout.sum(0),
    )


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(e))``.

    The library's softmax is not vectorised over short rows, and its exp costs three times its exp2. Most scores need no
    shift by the maximum of their row before the exponential; one pass over the tensor tells.
    """
    scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5 * LOG2_E)
    low, high = torch.aminmax(scores)
    if scores.shape[-1] > SHORT or not (low.item() > -SAFE_EXPONENT and high.item() < SAFE_EXPONENT):
        return scores.div_(LOG2_E).softmax(-1)
    return scores.exp2_().div_(row_sums(scores))


def row_sums(x: Tensor) -> Tensor:
    """Sums over the last axis; a matrix-vector product is faster than a reduction over short rows."""
    return torch.mv(x.view(-1, x.shape[-1]), x.new_ones(x.shape[-1])).view(*x.shape[:-1], 1)


def feed_forward(rows: Tensor, w: Weights, mask: Tensor | None, activation: str) -> tuple[Tensor, Saved]:
    """Two linear maps with an activation between, without the dropout of the result."""
    linear = F.linear(rows, w.mlp1_weight, w.mlp1_bias)
    if activation == "relu":  # its gradient needs the sign alone, which the dropped values still show
        hidden = linear.relu_() if mask is None else linear.relu_().mul_(mask)
        saved: Saved = (rows, hidden)
    else:
        hidden = drop(F.gelu(linear), mask)
        saved = (rows, hidden, linear)
    return F.linear(hidden, w.mlp2_weight, w.mlp2_bias), saved


def feed_forward_backward(dout: Tensor, saved: Saved, w: Weights, mask: Tensor | None, activation: str) -> Saved:
    rows, hidden, *linear = saved
    dhidden = torch.mm(dout, w.mlp2_weight)
    if mask is not None:
        dhidden.mul_(mask)
    if activation == "relu":
        dhidden = torch.ops.aten.threshold_backward(dhidden, hidden, 0)
    else:
        dhidden = torch.ops.aten.gelu_backward(dhidden, *linear)
    return (
        torch.mm(dhidden, w.mlp1_weight),
        torch.mm(dhidden.t(), rows),
        dhidden.sum(0),
        torch.mm(dout.t(), hidden),
        dout.sum(0),
    )


def layer_norm(rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Saved]:
    y, mean, rstd = torch.native_layer_norm(rows, rows.shape[-1:], weight, bias, eps)
    return y, (rows, mean, rstd)


def layer_norm_backward(dy: Tensor, saved: Saved, weight: Tensor, bias: Tensor) -> Saved:
    rows, mean, rstd = saved
    return torch.ops.aten.native_layer_norm_backward(
        dy, rows, rows.shape[-1:], mean, rstd, weight, bias, [True, True, True]
    )


def add_dropped(x: Tensor, branch: Tensor, mask: Tensor | None) -> Tensor:
    return branch.add_(x) if mask is None else torch.addcmul(x, branch, mask)


def drop(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask
