"""Gated attention on the library's flash attention for CPUs.

No T x S tensor is formed, for causal attention with T != S neither: what every query sees and the square causal rest
are two calls, joined by their log-sum-exps. The backward of each call takes the joint ones and is exact.

Legend: B batch, T queries, S keys, H heads, K key width, V value width, D the larger of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.kernels.gated_sdpa.reference import visible_keys

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Piece = tuple[slice, slice, bool]  # queries, keys, square and causal


def pieces(T: int, S: int, causal: bool) -> list[Piece]:
    """The calls that make up the attention; none if there is nothing to attend to."""
    if not T or not S:
        return []
    if not causal:
        return [(slice(0, T), slice(0, S), False)]
    common = min(T, S)
    rest = (slice(T - common, T), slice(S - common, S), True)
    return [rest] if S <= T else [(slice(0, T), slice(0, S - T), False), rest]


def padded(x: Tensor, D: int) -> Tensor:
    """``[B, T, H, *]`` as ``[B, H, T, D]``, in that order in memory that the library reads without a copy."""
    x = x.contiguous()
    return (x if x.shape[-1] == D else F.pad(x, (0, D - x.shape[-1]))).transpose(1, 2)


def additive(mask: Tensor | None, q: Tensor, S: int, causal: bool) -> Tensor | None:
    if mask is None:
        return None
    visible = visible_keys(q.new_empty(0, q.shape[1], S), causal, mask)
    assert visible is not None
    shape = q.shape[0], visible.shape[-3] if visible.dim() > 2 else 1, q.shape[1], S
    return torch.zeros(shape, dtype=q.dtype, device=q.device).masked_fill_(~visible, -torch.inf)


def forward(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, scale: float, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """y; o before the gate and the log-sum-exps ``[B, H, T]`` for the backward."""
    B, T, H, _ = q.shape
    y, o = (torch.empty(B, T, H, v.shape[-1], dtype=v.dtype, device=v.device) for _ in range(2))
    lse = torch.empty(B, H, T, dtype=torch.float32, device=v.device)
    V, D = v.shape[-1], max(q.shape[-1], v.shape[-1])
    bias = additive(mask, q, k.shape[1], causal)
    parts = pieces(q.shape[1], k.shape[1], causal and mask is None) if q.numel() and v.numel() else []
    if not parts or parts[0][0].start > 0:
        o.zero_()
        lse.zero_()
    queries, keys, values = padded(q, D), padded(k, D), padded(v, D)
    for number, (t, s, square) in enumerate(parts):
        part, part_lse = flash(
            queries[:, :, t], keys[:, :, s], values[:, :, s], 0.0, square, attn_mask=bias, scale=scale
        )
        part = part.transpose(1, 2)[..., :V]
        if number:
            joint = torch.logaddexp(lse, part_lse)
            old, new = ((x - joint).exp_().mT.unsqueeze(-1) for x in (lse, part_lse))
            o.copy_(o * old + part * new)
            lse.copy_(joint)
        else:
            o[:, t].copy_(part)
            lse[:, :, t].copy_(part_lse)
    torch.mul(o, gate.float().sigmoid(), out=y)
    return y, o, lse


def backward(
    dy: Tensor,
    o: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    scale: float,
    causal: bool,
    mask: Tensor | None,
) -> list[Tensor]:
    """Gradients of q, k, v and the gate."""
    opened = gate.float().sigmoid()
    do = dy * opened
    dopened = (dy * o).float()
    if gate.shape[-1] != o.shape[-1]:
        dopened = dopened.sum(-1, keepdim=True)
    dgate = torch.ops.aten.sigmoid_backward(dopened, opened).to(gate.dtype)
    D = max(q.shape[-1], v.shape[-1])
    bias = additive(mask, q, k.shape[1], causal)
    parts = pieces(q.shape[1], k.shape[1], causal and mask is None) if q.numel() and v.numel() else []
    queries, keys, values = padded(q, D), padded(k, D), padded(v, D)
    do, o = padded(do.to(v.dtype), D), padded(o, D)
    gradients = [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in ((q, k, v) if len(parts) != 1 else ())]
    for t, s, square in parts:
        part = flash_backward(
            do[:, :, t], queries[:, :, t], keys[:, :, s], values[:, :, s], o[:, :, t], lse[:, :, t].contiguous(), 0.0,
            square, attn_mask=bias, scale=scale,
        )  # fmt: skip
        more = [x.transpose(1, 2)[..., : whole.shape[-1]] for x, whole in zip(part, (q, k, v), strict=True)]
        if not gradients:
            dq, dk, dv = (x.contiguous() for x in more)
            return [F.pad(dq, (0, 0, 0, 0, t.start, 0)) if t.start else dq, dk, dv, dgate]
        for total, rows, x in zip(gradients, (t, s, s), more, strict=True):
            total[:, rows] += x
    return [*gradients, dgate]
