"""MAXIM's spatial gating unit: ``spatial_gate(x, kernel, bias, norm_weight, norm_bias, axis=...)``."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.sequences import FLOATS, takes_reference
from toolkit.kernels.spatial_gate import cpu, reference

__all__ = ["spatial_gate"]


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
        backend: ``auto``, ``torch`` (tiles) or ``reference`` (plain PyTorch; differentiable twice).

    Returns:
        y ``[B, G, P, C]`` in x's type.

    Raises:
        InputError: shapes, types or an axis that do not fit.
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
        if weight.device != x.device:
            raise InputError(f"{name} is on {weight.device}, but x on {x.device}")
    for name, tensor in {"x": x, **{name: weight for name, (weight, _) in weights.items()}}.items():
        if tensor.dtype not in FLOATS:
            raise InputError(f"{name} is {tensor.dtype}, not one of float32, bfloat16, float16, float64")
    plain = takes_reference(backend, x, kernel, bias, norm_weight, norm_bias)
    compiled = backend == "auto" and torch.compiler.is_compiling()  # which fuses plain PyTorch
    form = reference if plain or compiled else cpu
    return form.spatial_gate(x, kernel, bias, norm_weight, norm_bias, axis, eps)
