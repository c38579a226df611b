"""Two streams or one value behind a gate: ``gated_fusion`` and ``glu swiglu geglu_tanh geglu_erf``.

One pass over memory forward and one backward; the gate is computed again in the backward, so only inputs are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.backends import Operator
from toolkit.kernels._common.registration import register_gradient
from toolkit.kernels.gated_fusion import reference

__all__ = ["geglu_erf", "geglu_tanh", "gated_fusion", "glu", "swiglu"]

OPERATOR = Operator("gated_fusion", fusible=True)


def gated_fusion(x: Tensor, a: Tensor, b: Tensor, *, backend: str = "auto") -> Tensor:
    """``s a + (1 - s) b`` with ``s = sigmoid(x)``.

    Args:
        x: what opens the gate, any shape; ``a`` and ``b`` have the same.
        a: passes where the gate is open.
        b: passes where it is shut.
        backend: ``auto``, ``triton``, ``torch`` or ``reference`` (``toolkit.kernels._common.backends``).

    Raises:
        InputError: shapes that differ, a type or device that is not served, a forced form that cannot run.
    """
    return _gated("gated_fusion", x, a, b, backend)


def glu(x: Tensor, a: Tensor, *, backend: str = "auto") -> Tensor:
    """``sigmoid(x) a``; arguments as of ``gated_fusion``."""
    return _gated("glu", x, a, None, backend)


def swiglu(x: Tensor, a: Tensor, *, backend: str = "auto") -> Tensor:
    """``silu(x) a``; arguments as of ``gated_fusion``."""
    return _gated("swiglu", x, a, None, backend)


def geglu_tanh(x: Tensor, a: Tensor, *, backend: str = "auto") -> Tensor:
    """``gelu(x) a`` with the tanh form of gelu; arguments as of ``gated_fusion``."""
    return _gated("geglu_tanh", x, a, None, backend)


def geglu_erf(x: Tensor, a: Tensor, *, backend: str = "auto") -> Tensor:
    """``gelu(x) a`` with the exact gelu; arguments as of ``gated_fusion``."""
    return _gated("geglu_erf", x, a, None, backend)


def _gated(kind: str, x: Tensor, a: Tensor, b: Tensor | None, backend: str) -> Tensor:
    for name, tensor in (("a", a), ("b", b)):
        if tensor is not None and tensor.shape != x.shape:
            raise InputError(f"{kind}: {name} is {list(tensor.shape)}, x is {list(x.shape)}", "Expand it to x's shape")
    form = OPERATOR.choose(x, a, b, backend=backend, plain=_why_plain(kind, x))
    dtype = torch.promote_types(x.dtype, a.dtype)
    if b is not None:
        dtype = torch.promote_types(dtype, b.dtype)
        b = b.to(dtype)
    x, a = x.to(dtype), a.to(dtype)
    if form == "reference":
        return reference.gated(x, a, b, kind)
    return _forward(x, a, b, kind, form)


def _why_plain(kind: str, x: Tensor) -> str:
    """Below these sizes memory is cheap, and computing the gate again is not (README, "On a CPU")."""
    if torch.compiler.is_compiling():  # sizes may be symbols
        return ""
    fast_from = 2**20 if kind == "gated_fusion" else 2**23
    return f"{x.numel()} elements are fewer than {fast_from}" if x.numel() < fast_from else ""


@torch.library.custom_op("gated::gated_fusion_fwd", mutates_args=())
def _forward(x: Tensor, a: Tensor, b: Tensor | None, kind: str, backend: str) -> Tensor:
    x, a, b = x.contiguous(), a.contiguous(), b if b is None else b.contiguous()
    return OPERATOR.form(backend).forward(x, a, b, kind)


@_forward.register_fake
def _(x: Tensor, a: Tensor, b: Tensor | None, kind: str, backend: str) -> Tensor:
    return _like(x)


@torch.library.custom_op("gated::gated_fusion_bwd", mutates_args=())
def _backward(dy: Tensor, x: Tensor, a: Tensor, b: Tensor | None, kind: str, backend: str) -> list[Tensor]:
    dy, x, a, b = dy.contiguous(), x.contiguous(), a.contiguous(), b if b is None else b.contiguous()
    return OPERATOR.form(backend).backward(dy, x, a, b, kind)


@_backward.register_fake
def _(dy: Tensor, x: Tensor, a: Tensor, b: Tensor | None, kind: str, backend: str) -> list[Tensor]:
    return [_like(tensor) for tensor in (x, a, b) if tensor is not None]


register_gradient(_forward, _backward, reference.gated)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
