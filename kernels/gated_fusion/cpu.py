"""Gated fusion in plain PyTorch, block by block: what lies between reading the inputs and writing the results stays in
the cache, and no intermediate result of full size is written or kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.kernels._common.memory import empty_like
from toolkit.kernels._common.numerics import working_dtype

BLOCK = 131_072  # elements: 512 KiB of float32; smaller blocks stay in a nearer cache, but Python's share grows
SLOPE, CUBIC = 2 * (2 / torch.pi) ** 0.5, 0.044715  # gelu's tanh form: x sigmoid(SLOPE (x + CUBIC x^3))
SATURATED = 30.0  # sigmoid is exactly 0 or 1 beyond; keeps x^3 finite

aten: Any = torch.ops.aten


def forward(x: Tensor, a: Tensor, b: Tensor | None, kind: str) -> Tensor:
    y = empty_like(x)
    work = _work(2, x)
    for x_, a_, b_, y_ in _blocks((x, a, b), (y,), work):
        h, _ = _gate(kind, x_, *work[:, : len(x_)])
        if b_ is None:
            torch.mul(h, a_, out=y_)
        else:
            torch.lerp(b_, a_, h, out=y_)
    return y


def backward(dy: Tensor, x: Tensor, a: Tensor, b: Tensor | None, kind: str) -> list[Tensor]:
    dx, da, db = empty_like(x), empty_like(x), None if b is None else empty_like(x)
    work = _work(4, x)
    for dy_, x_, a_, b_, dx_, da_, db_ in _blocks((dy, x, a, b), (dx, da, db), work):
        h, s, dh, slope = work[:, : len(x_)]
        _gate(kind, x_, h, s)
        torch.mul(dy_, h, out=da_)
        if b_ is None:
            torch.mul(dy_, a_, out=dh)
        else:
            torch.sub(dy_, da_, out=db_)
            torch.sub(a_, b_, out=dh).mul_(dy_)
        _gate_backward(kind, dh, x_, h, s, slope, out=dx_)
    return [dx, da] if db is None else [dx, da, db]


def _gate(kind: str, x: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The gate in ``h``; in ``s`` the sigmoid inside it, where the gradient needs one."""
    if kind == "swiglu":
        aten.silu.out(x, out=h)
    elif kind == "geglu_erf":
        aten.gelu.out(x, out=h)
    elif kind == "geglu_tanh":
        torch.clamp(x, -SATURATED, SATURATED, out=s)
        torch.mul(s, s, out=h).mul_(s)
        s.add_(h, alpha=CUBIC).mul_(SLOPE).sigmoid_()
        torch.mul(x, s, out=h)
    else:
        torch.sigmoid(x, out=h)
    return h, s


def _gate_backward(kind: str, dh: Tensor, x: Tensor, h: Tensor, s: Tensor, slope: Tensor, out: Tensor) -> None:
    """Gradient of x from that of the gate; ``slope`` is memory to work in."""
    if kind == "swiglu":
        aten.silu_backward.grad_input(dh, x, grad_input=out)
    elif kind == "geglu_erf":
        aten.gelu_backward.grad_input(dh, x, grad_input=out)
    elif kind == "geglu_tanh":  # s + h (1 - s) SLOPE (1 + 3 CUBIC x^2)
        torch.clamp(x, -SATURATED, SATURATED, out=slope).square_().mul_(3 * CUBIC * SLOPE).add_(SLOPE)
        torch.addcmul(h, h, s, value=-1, out=h)
        torch.addcmul(s, h, slope, out=s)
        torch.mul(dh, s, out=out)
    else:
        aten.sigmoid_backward.grad_input(dh, h, grad_input=out)


def _work(rows: int, x: Tensor) -> Tensor:
    """Memory for intermediate results of one block, a row each."""
    size = min(BLOCK, x.numel()) if x.is_cpu else x.numel()  # elsewhere launches cost more than memory
    return torch.empty(rows, max(size, 1), dtype=working_dtype(x.dtype), device=x.device)


def _blocks(
    inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None], work: Tensor
) -> Iterator[tuple[Any, ...]]:
    """Flat pieces of all tensors, as long as the rows of ``work`` and of its type."""
    flat = [None if tensor is None else tensor.reshape(-1).split(work.shape[1]) for tensor in (*inputs, *outputs)]
    for number in range(len(flat[0] or ())):
        pieces = tuple(None if tensor is None else tensor[number] for tensor in flat)
        if inputs[0] is not None and inputs[0].dtype is work.dtype:
            yield pieces
            continue
        wide = tuple(None if piece is None else piece.to(work.dtype) for piece in pieces)
        yield wide
        for piece, result in zip(pieces[len(inputs) :], wide[len(inputs) :], strict=True):
            if piece is not None:
                piece.copy_(result)
