"""Gated recursive convolution: ``gnconv(x, weights)``, and its gating chain alone, ``gated_recursion``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.backends import Operator
from toolkit.kernels._common.sequences import FLOATS, check_float32
from toolkit.kernels.gnconv import cpu, reference
from toolkit.kernels.gnconv.reference import Weights

__all__ = ["Weights", "gated_recursion", "gnconv", "gnconv_steps"]

OPERATOR = Operator("gnconv", fusible=True)


def gnconv(x: Tensor, weights: Weights, *, scale: float = 1.0, backend: str = "auto") -> Tensor:
    """Gated recursive convolution of order n on d channels.

    ``a, r = proj_in(x)``, ``b = scale * DWConv(r)``; ``p_0 = a * b_0``, ``p_(i+1) = pws_i(p_i) * b_(i+1)``;
    ``y = proj_out(p_(n-1))`` (Rao et al., *HorNet: Efficient High-Order Spatial Interactions with Recursive Gated
    Convolutions*, section 3.1). The b_i are b cut into widths d / 2^(n-1-i), and a has w_0 channels.

    Args:
        x: ``[B, c, H, W]``.
        weights: the order is one more than the number of ``pws_weights``; ``proj_out_weight`` may be None.
        scale: of the convolved channels; HorNet's 1/3 keeps the product of n factors small.
        backend: ``auto``, ``triton``, ``torch`` or ``reference`` (``toolkit.kernels._common.backends``).

    Returns:
        y ``[B, o, H, W]`` in x's type, o = d without ``proj_out_weight``.

    Raises:
        InputError: shapes or types that do not fit, 2^(n-1) does not divide d, or a forced form that cannot run.
    """
    return gnconv_steps(x, weights, scale=scale, backend=backend)[0]


def gnconv_steps(
    x: Tensor, weights: Weights, *, scale: float = 1.0, backend: str = "auto"
) -> tuple[Tensor, list[Tensor]]:
    """``gnconv`` and the values p_0 .. p_(n-1) of its recursion, ``[B, w_i, H, W]``."""
    tensors = {name: t for name, t in _named(weights).items() if t is not None}
    _check(x, weights, tensors)
    form = _form(backend, x, *tensors.values())
    return reference.gnconv(x, weights, float(scale)) if form == "reference" else _steps(x, weights, float(scale), form)


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
    tensors |= {f"biases[{i}]": c for i, c in enumerate(biases)}
    _check_floats(tensors, a)
    if a.dim() != 4:
        raise InputError(f"a has shape {list(a.shape)}, not [B, w_0, H, W]")
    total = _check_chain(weights, biases, a.shape[1], "weights", "biases")
    if b.shape != (a.shape[0], total, *a.shape[2:]):
        raise InputError(f"b has shape {list(b.shape)}, not {[a.shape[0], total, *a.shape[2:]]}")
    form = _form(backend, *tensors.values())
    if form == "reference" or (form == "torch" and any(t.dtype is not torch.float32 for t in tensors.values())):
        return reference.gated_recursion(a, b, weights, biases)
    return _chain(a, b, list(weights), list(biases), form)


def _form(backend: str, *tensors: Tensor) -> str:
    form = OPERATOR.choose(*tensors, backend=backend)
    if form == "torch" and not tensors[0].is_cpu:
        return "reference"  # other devices have better convolutions of their own
    if form != "reference":
        check_float32("gnconv", form, *tensors)
    return form


def _steps(x: Tensor, weights: Weights, scale: float, form: str) -> tuple[Tensor, list[Tensor]]:
    """The scale is folded into the depthwise weights. On a CPU all is float32, on a GPU of the types given."""
    if form == "triton":
        a, rest = F.conv2d(x, weights.proj_in_weight, weights.proj_in_bias).split(reference.parts(weights), 1)
        kernel, offsets = scale * weights.dwconv_weight, scale * weights.dwconv_bias
        b = F.conv2d(rest, kernel, offsets, padding=kernel.shape[-1] // 2, groups=rest.shape[1])
        steps = _chain(a, b, list(weights.pws_weights), list(weights.pws_biases), form)
        return reference.project_out(steps[-1], weights), steps
    wide = Weights(*(cpu.widened(entry) for entry in weights))
    with torch.autocast(x.device.type, enabled=False):
        a, rest = F.conv2d(x.float(), wide.proj_in_weight, wide.proj_in_bias).split(reference.parts(wide), 1)
        b = _depthwise(rest, scale * wide.dwconv_weight, scale * wide.dwconv_bias)
        steps = _chain(a, b, list(wide.pws_weights), list(wide.pws_biases), form)
        y = reference.project_out(steps[-1], wide)
    return y.to(x.dtype), [step.to(x.dtype) for step in steps]


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


@torch.library.custom_op("gated::depthwise_fwd", mutates_args=())
def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cpu.depthwise(x, weight, bias)


@_depthwise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("gated::depthwise_bwd", mutates_args=())
def _depthwise_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return cpu.depthwise_backward(dy, x, weight)


@_depthwise_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


@torch.library.custom_op("gated::gnconv_chain_fwd", mutates_args=())
def _chain(a: Tensor, b: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], backend: str) -> list[Tensor]:
    weights, biases = ([x.contiguous() for x in entries] for entries in (weights, biases))
    return OPERATOR.form(backend).chain(a.contiguous(), b.contiguous(), weights, biases)


@_chain.register_fake
def _(a: Tensor, b: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], backend: str) -> list[Tensor]:
    B, first, H, W = a.shape
    return [a.new_empty(B, width, H, W) for width in (first, *(weight.shape[0] for weight in weights))]


@torch.library.custom_op("gated::gnconv_chain_bwd", mutates_args=())
def _chain_backward(
    dsteps: Sequence[Tensor | None],
    a: Tensor,
    b: Tensor,
    steps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    backend: str,
) -> list[Tensor]:
    """Gradients of a, b, the weights, then the biases."""
    contiguous = ([x.contiguous() for x in entries] for entries in (weights, biases))
    form = OPERATOR.form(backend)
    found = form.chain_backward(dsteps, a.contiguous(), b.contiguous(), steps, *contiguous)
    return [gradient.to(t.dtype) for gradient, t in zip(found, (a, b, *weights, *biases), strict=True)]


@_chain_backward.register_fake
def _(
    dsteps: Sequence[Tensor | None],
    a: Tensor,
    b: Tensor,
    steps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    backend: str,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (a, b, *weights, *biases)]


def _setup_depthwise(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, bias = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(*tensors)


def _gradient_of_depthwise(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    dx, dweight, dbias = _depthwise_backward(dy, *ctx.saved_tensors)
    return dx, dweight, dbias if ctx.biased else None


def _setup_chain(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    a, b, weights, biases, ctx.backend = inputs
    ctx.order = len(output)
    ctx.set_materialize_grads(False)  # nobody uses the steps before the last, as a rule
    ctx.save_for_backward(a, b, *weights, *biases, *output)


def _gradient_of_chain(ctx: Any, dsteps: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], None]:
    a, b, *others = ctx.saved_tensors
    n = ctx.order - 1
    weights, biases, steps = others[:n], others[n : 2 * n], others[2 * n :]
    da, db, *gradients = _chain_backward(dsteps, a, b, steps, weights, biases, ctx.backend)
    return da, db, gradients[:n], gradients[n:], None


_depthwise.register_autograd(_gradient_of_depthwise, setup_context=_setup_depthwise)
_chain.register_autograd(_gradient_of_chain, setup_context=_setup_chain)
