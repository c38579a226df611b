"""Both directions on a GPU, by the kernels of ``gla``: a launch finds the states of both, and they share the scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from toolkit.kernels.gla import triton as kernels


def forward(
    q: Tensor, k: Tensor, v: Tensor, g_forward: Tensor, g_backward: Tensor, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs, and nothing for the backward, which computes the states again."""
    gates = [g_forward, g_backward]
    o = kernels.outputs(q, k, v, gates, None, None, cu_seqlens, scale / 2)  # the mean of the directions
    return o, o.new_empty(0)


def backward(
    do: Tensor,
    saved: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_forward: Tensor,
    g_backward: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
) -> list[Tensor]:
    """Gradients of q, k, v and of both gates."""
    gates = [g_forward, g_backward]
    return kernels.gradients(do, q, k, v, gates, None, None, None, cu_seqlens, scale / 2)


def aot_cases() -> Iterator[dict[str, Any]]:
    """The kernels with both gates."""
    return kernels.aot_cases(sides=2)
