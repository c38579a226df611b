"""Haar wavelet transform: ``haar(x)`` and ``inverse_haar(low, high)`` in one dimension, ``haar_2d`` in two.

Two registered operators, a split and a merge of pairs, each the other's adjoint: nothing is saved, and derivatives of
any order exist.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.backends import Operator
from toolkit.kernels.haar import reference

__all__ = ["haar", "haar_2d", "inverse_haar", "inverse_haar_2d"]

OPERATOR = Operator("haar", fusible=True)


def haar(x: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """One level of the Haar transform along the last axis.

    ``low_i = (x_2i + x_(2i+1)) / sqrt(2)``, ``high_i = (x_2i - x_(2i+1)) / sqrt(2)`` (Haar, *Zur Theorie der
    orthogonalen Funktionensysteme*).

    Args:
        x: ``[..., n]``, n >= 1; an odd length repeats its last sample once.
        backend: ``auto``, ``triton``, ``torch`` or ``reference`` (``toolkit.kernels._common.backends``).

    Returns:
        low and high, ``[..., ceil(n / 2)]``, in x's type.

    Raises:
        InputError: no samples, a type or device that is not served, a forced form that cannot run.
    """
    if not x.dim() or not x.shape[-1]:
        raise InputError(f"x has shape {list(x.shape)}, not [..., n] with n >= 1")
    form = OPERATOR.choose(x, backend=backend)
    return reference.haar(x) if form == "reference" else _split(x, True, form)


def inverse_haar(low: Tensor, high: Tensor, n: int | None = None, *, backend: str = "auto") -> Tensor:
    """The signal whose transform is ``low`` and ``high``.

    Args:
        low: ``[..., m]``, as high.
        n: samples of the signal, 2m (the default) or 2m - 1.
        backend: as of ``haar``.

    Returns:
        ``[..., n]`` in low's type.

    Raises:
        InputError: shapes, types or a length that do not fit.
    """
    if not low.dim() or not low.shape[-1] or low.shape != high.shape:
        raise InputError(f"low has shape {list(low.shape)} and high {list(high.shape)}; both are [..., m] with m >= 1")
    if high.dtype != low.dtype:
        raise InputError(f"low is {low.dtype}, high {high.dtype}; both are of one type")
    m = low.shape[-1]
    n = 2 * m if n is None else n
    if n not in (2 * m - 1, 2 * m):
        raise InputError(f"n is {n}, but {m} pairs come from {2 * m - 1} or {2 * m} samples")
    form = OPERATOR.choose(low, high, backend=backend)
    return reference.inverse_haar(low, high, n) if form == "reference" else _merge(low, high, n, False, form)


def haar_2d(x: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (the last axis), then columns: ``[..., h, w] -> LL, LH, HL, HH [..., ceil(h / 2), ceil(w / 2)]``.

    The first letter is the band along the rows, the second along the columns.

    Raises:
        InputError: as ``haar``, or fewer than two axes.
    """
    if x.dim() < 2 or not x.shape[-2]:
        raise InputError(f"x has shape {list(x.shape)}, not [..., h, w] with h, w >= 1")
    bands = (haar(band.mT, backend=backend) for band in haar(x, backend=backend))
    (ll, lh), (hl, hh) = bands
    return ll.mT, lh.mT, hl.mT, hh.mT


def inverse_haar_2d(
    ll: Tensor, lh: Tensor, hl: Tensor, hh: Tensor, size: tuple[int, int] | None = None, *, backend: str = "auto"
) -> Tensor:
    """The image ``[..., h, w]`` whose bands of ``haar_2d`` these are; ``size`` is (h, w), even by default.

    Raises:
        InputError: as ``inverse_haar``.
    """
    h, w = (None, None) if size is None else size
    low = inverse_haar(ll.mT, lh.mT, h, backend=backend).mT
    high = inverse_haar(hl.mT, hh.mT, h, backend=backend).mT
    return inverse_haar(low, high, w, backend=backend)


@torch.library.custom_op("gated::haar_split", mutates_args=())
def _split(x: Tensor, repeat: bool, backend: str) -> tuple[Tensor, Tensor]:
    return OPERATOR.form(backend).split(x, repeat)


@_split.register_fake
def _(x: Tensor, repeat: bool, backend: str) -> tuple[Tensor, Tensor]:
    shape = *x.shape[:-1], (x.shape[-1] + 1) // 2
    return x.new_empty(shape), x.new_empty(shape)


@torch.library.custom_op("gated::haar_merge", mutates_args=())
def _merge(low: Tensor, high: Tensor, n: int, repeat: bool, backend: str) -> Tensor:
    return OPERATOR.form(backend).merge(low, high, n, repeat)


@_merge.register_fake
def _(low: Tensor, high: Tensor, n: int, repeat: bool, backend: str) -> Tensor:
    return low.new_empty(*low.shape[:-1], n)


def _setup_split(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, ctx.repeat, ctx.backend = inputs
    ctx.n = x.shape[-1]


def _setup_merge(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.repeat, ctx.backend = inputs[-2:]


def _backward_split(ctx: Any, dlow: Tensor, dhigh: Tensor) -> tuple[Tensor, None, None]:
    return _merge(dlow, dhigh, ctx.n, ctx.repeat, ctx.backend), None, None


def _backward_merge(ctx: Any, dx: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    return *_split(dx, ctx.repeat, ctx.backend), None, None, None


_split.register_autograd(_backward_split, setup_context=_setup_split)
_merge.register_autograd(_backward_merge, setup_context=_setup_merge)
