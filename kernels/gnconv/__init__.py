"""Gated recursive convolution: ``gnconv(x, weights)``, and its gating chain alone, ``gated_recursion``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.sequences import FLOATS, takes_reference
from toolkit.kernels.gnconv import cpu, reference
from toolkit.kernels.gnconv.reference import Weights

__all__ = ["Weights", "gated_recursion", "gnconv", "gnconv_steps"]


def gnconv(x: Tensor, weights: Weights, *, scale: float = 1.0, backend: str = "auto") -> Tensor:
    """Gated recursive convolution of order n on d channels.

    ``a, r = proj_in(x)``, ``b = scale * DWConv(r)``; ``p_0 = a * b_0``, ``p_(i+1) = pws_i(p_i) * b_(i+1)``;
    ``y = proj_out(p_(n-1))`` (Rao et al., *HorNet: Efficient High-Order Spatial Interactions with Recursive Gated
    Convolutions*, section 3.1). The b_i are b cut into widths d / 2^(n-1-i), and a has w_0 channels.

    Args:
        x: ``[B, c, H, W]``.
        weights: the order is one more than the number of ``pws_weights``; ``proj_out_weight`` may be None.
        scale: of the convolved channels; HorNet's 1/3 keeps the product of n factors small.
        backend: ``auto``, ``torch`` (on a CPU) or ``reference`` (plain PyTorch; differentiable twice).

    Returns:
        y ``[B, o, H, W]`` in x's type, o = d without ``proj_out_weight``.

    Raises:
        InputError: shapes or types that do not fit, or 2^(n-1) does not divide d.
    """
    return gnconv_steps(x, weights, scale=scale, backend=backend)[0]


def gnconv_steps(
    x: Tensor, weights: Weights, *, scale: float = 1.0, backend: str = "auto"
) -> tuple[Tensor, list[Tensor]]:
    """``gnconv`` and the values p_0 .. p_(n-1) of its recursion, ``[B, w_i, H, W]``."""
    tensors = {name: t for name, t in _named(weights).items() if t is not None}
    _check(x, weights, tensors)
    form = reference if _plain(backend, x, *tensors.values()) else cpu
    return form.gnconv(x, weights, float(scale))


def gated_recursion(
    a: Tensor, b: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, backend: str = "auto"
) -> list[Tensor]:
    """``p_0 = a * b_0``, ``p_(i+1) = (W_i p_i + c_i) * b_(i+1)``: the chain of ``gnconv`` around another filter.

    Args:
        a: ``[B, w_0, H, W]``.
        b: ``[B, w_0 + .. + w_(n-1), H, W]``, filtered (and scaled) channels.
        weights: ``[w_(i+1), w_i, 1, 1]`` for i = 0 .. n-2; the biases are ``[w_(i+1)]``.
        backend: as of ``gnconv``.

    Returns:
        p_0 .. p_(n-1).

    Raises:
        InputError: shapes or types that do not fit.
    """
    tensors = {"a": a, "b": b} | {f"weights[{i}]": w for i, w in enumerate(weights)}
    _check_floats(tensors | {f"biases[{i}]": c for i, c in enumerate(biases)}, a)
    if a.dim() != 4:
        raise InputError(f"a has shape {list(a.shape)}, not [B, w_0, H, W]")
    total = _check_chain(weights, biases, a.shape[1], "weights", "biases")
    if b.shape != (a.shape[0], total, *a.shape[2:]):
        raise InputError(f"b has shape {list(b.shape)}, not {[a.shape[0], total, *a.shape[2:]]}")
    if _plain(backend, a, b, *weights, *biases) or any(t.dtype is not torch.float32 for t in (a, b, *weights, *biases)):
        return reference.gated_recursion(a, b, weights, biases)
    return cpu.gated_recursion(a, b, weights, biases)


def _plain(backend: str, *tensors: Tensor) -> bool:
    """Other devices have better convolutions of their own, and a compiler fuses the products."""
    compiled = backend == "auto" and torch.compiler.is_compiling()
    return takes_reference(backend, *tensors) or compiled or not tensors[0].is_cpu


def _named(weights: Weights) -> dict[str, Tensor | None]:
    named: dict[str, Tensor | None] = {}
    for name, entry in weights._asdict().items():
        named |= {f"{name}[{i}]": t for i, t in enumerate(entry)} if isinstance(entry, (tuple, list)) else {name: entry}
    return named


def _check_floats(tensors: dict[str, Tensor], x: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise InputError(f"{name} is {tensor.dtype}, not one of float32, bfloat16, float16, float64")
        if tensor.device != x.device:
            raise InputError(f"{name} is on {tensor.device}, but the input on {x.device}")


def _check_chain(weights: Sequence[Tensor], biases: Sequence[Tensor], w0: int, name: str, bias_name: str) -> int:
    """Sum of the widths of a chain that begins with ``w0`` channels."""
    if len(weights) != len(biases):
        raise InputError(f"{len(weights)} {name}, but {len(biases)} {bias_name}")
    width = total = w0
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.dim() != 4 or weight.shape[1:] != (width, 1, 1) or bias.shape != weight.shape[:1]:
            raise InputError(
                f"{name}[{i}] has shape {list(weight.shape)} and {bias_name}[{i}] {list(bias.shape)}, "
                f"not [w, {width}, 1, 1] and [w]"
            )
        width = weight.shape[0]
        total += width
    return total


def _check(x: Tensor, weights: Weights, tensors: dict[str, Tensor]) -> None:
    if x.dim() != 4:
        raise InputError(f"x has shape {list(x.shape)}, not [B, c, H, W]")
    _check_floats({"x": x, **tensors}, x)
    d, order, k = weights.proj_in_weight.shape[0] // 2, len(weights.pws_weights) + 1, weights.dwconv_weight.shape[-1]
    w0 = d >> (order - 1)
    if not w0 or d % (1 << (order - 1)):
        raise InputError(f"order {order} needs channels divisible by {1 << (order - 1)}, but proj_in_weight gives {d}")
    total = 2 * d - w0
    shapes = {
        "proj_in_weight": (2 * d, x.shape[1], 1, 1),
        "proj_in_bias": (2 * d,),
        "dwconv_weight": (total, 1, k, k),
        "dwconv_bias": (total,),
    }
    if weights.proj_out_weight is not None:
        shapes["proj_out_weight"] = (weights.proj_out_weight.shape[0], d, 1, 1)
        shapes["proj_out_bias"] = (weights.proj_out_weight.shape[0],)
    for name, shape in shapes.items():
        given = list(tensors[name].shape) if name in tensors else None
        if given != list(shape):
            raise InputError(f"{name} has shape {given}, not {list(shape)}, for x {list(x.shape)} and order {order}")
    if k % 2 == 0:
        raise InputError(f"dwconv_weight has a kernel of {k}, not an odd one")
    for i, weight in enumerate(weights.pws_weights):
        if weight.shape[0] != w0 << (i + 1):
            raise InputError(f"pws_weights[{i}] has shape {list(weight.shape)}, not {[w0 << (i + 1), w0 << i, 1, 1]}")
    _check_chain(weights.pws_weights, weights.pws_biases, w0, "pws_weights", "pws_biases")
