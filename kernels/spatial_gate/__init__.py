"""MAXIM's spatial gating unit: ``spatial_gate(x, kernel, bias, norm_weight, norm_bias, axis=...)``."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.backends import Operator
from toolkit.kernels._common.registration import register_gradient
from toolkit.kernels._common.sequences import check_float32
from toolkit.kernels.spatial_gate import reference

__all__ = ["spatial_gate"]

OPERATOR = Operator("spatial_gate", fusible=True)


def spatial_gate(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    axis: int,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """One half of the channels gates the other half, normalised and mixed over tokens.

    ``m_j = sum_i LayerNorm(v)_i W_ij + bias_j``, ``y = u * (m + 1)`` (Tu et al., *MAXIM: Multi-Axis MLP for Image
    Processing*, section 3.2; Liu et al., *Pay Attention to MLPs*, section 2.1).

    Args:
        x: ``[B, G, P, 2C]``, G grid cells of P positions; u is the first C channels, v the rest.
        kernel: W ``[n, n]``, input by output; n = G or P.
        bias: ``[n]``.
        norm_weight: ``[C]``, as norm_bias.
        axis: 1 mixes cells (grid, n = G), 2 positions in a cell (block, n = P).
        eps: of the LayerNorm.
        backend: ``auto``, ``triton``, ``torch`` or ``reference`` (``toolkit.kernels._common.backends``).

    Returns:
        y ``[B, G, P, C]`` in x's type.

    Raises:
        InputError: shapes or an axis that do not fit, a type or device that is not served, a forced form that cannot
            run.
    """
    if x.dim() != 4 or x.shape[-1] % 2 or not x.shape[-1]:
        raise InputError(f"x has shape {list(x.shape)}, not [B, G, P, 2C]")
    if axis not in (1, 2):
        raise InputError(f"axis is {axis}, not 1 (grid cells) or 2 (positions in a cell)")
    n, C = x.shape[axis], x.shape[-1] // 2
    weights = {"kernel": (kernel, (n, n)), "bias": (bias, (n,))}
    weights |= {"norm_weight": (norm_weight, (C,)), "norm_bias": (norm_bias, (C,))}
    for name, (weight, shape) in weights.items():
        if weight.shape != shape:
            raise InputError(f"{name} has shape {list(weight.shape)}, not {list(shape)}, for x {list(x.shape)}")
    tensors = x, kernel, bias, norm_weight, norm_bias
    form = OPERATOR.choose(*tensors, backend=backend)
    if form == "reference":
        return reference.spatial_gate(*tensors, axis, eps)
    check_float32("spatial_gate", form, *tensors)
    return _forward(*tensors, axis, eps, form)[0]


@torch.library.custom_op("gated::spatial_gate_fwd", mutates_args=())
def _forward(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    axis: int,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y, and what the form keeps for its backward in float32."""
    x, kernel, bias, norm_weight, norm_bias = (t.contiguous() for t in (x, kernel, bias, norm_weight, norm_bias))
    return OPERATOR.form(backend).forward(x, kernel, bias, norm_weight, norm_bias, axis, eps)


@_forward.register_fake
def _(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    axis: int,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    B, G, P, C = *x.shape[:3], x.shape[3] // 2
    y = x.new_empty(B, G, P, C)
    return y, x.new_empty((2, B, G, P) if backend == "triton" else y.shape, dtype=torch.float32)


@torch.library.custom_op("gated::spatial_gate_bwd", mutates_args=())
def _backward(
    dy: Tensor,
    kept: Tensor,
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    axis: int,
    eps: float,
    backend: str,
) -> list[Tensor]:
    tensors = [t.contiguous() for t in (x, kernel, bias, norm_weight, norm_bias)]
    gradients = OPERATOR.form(backend).backward(dy.contiguous(), kept, *tensors, axis, eps)
    return [gradient.to(t.dtype) for gradient, t in zip(gradients, tensors, strict=True)]


@_backward.register_fake
def _(
    dy: Tensor,
    kept: Tensor,
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    axis: int,
    eps: float,
    backend: str,
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (x, kernel, bias, norm_weight, norm_bias)]


register_gradient(_forward, _backward, reference.spatial_gate, saved_outputs=[1])
