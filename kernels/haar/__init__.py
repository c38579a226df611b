"""Haar wavelet transform: ``haar(x)`` and ``inverse_haar(low, high)`` in one dimension, ``haar_2d`` in two."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.sequences import FLOATS, takes_reference
from toolkit.kernels.haar import cpu, reference

__all__ = ["haar", "haar_2d", "inverse_haar", "inverse_haar_2d"]


def haar(x: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """One level of the Haar transform along the last axis.

    ``low_i = (x_2i + x_(2i+1)) / sqrt(2)``, ``high_i = (x_2i - x_(2i+1)) / sqrt(2)`` (Haar, *Zur Theorie der
    orthogonalen Funktionensysteme*).

    Args:
        x: ``[..., n]``, n >= 1; an odd length repeats its last sample once.
        backend: ``auto``, ``torch`` or ``reference`` (plain PyTorch, which compilers fuse).

    Returns:
        low and high, ``[..., ceil(n / 2)]``, in x's type.

    Raises:
        InputError: no samples, or not floating point.
    """
    if not x.dim() or not x.shape[-1]:
        raise InputError(f"x has shape {list(x.shape)}, not [..., n] with n >= 1")
    if x.dtype not in FLOATS:
        raise InputError(f"x is {x.dtype}, not one of float32, bfloat16, float16, float64")
    return (reference if _plain(backend, x) else cpu).haar(x)


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
    if low.dtype not in FLOATS or high.dtype != low.dtype or high.device != low.device:
        raise InputError(f"low is {low.dtype} on {low.device}, high {high.dtype} on {high.device}: not floats alike")
    m = low.shape[-1]
    n = 2 * m if n is None else n
    if n not in (2 * m - 1, 2 * m):
        raise InputError(f"n is {n}, but {m} pairs come from {2 * m - 1} or {2 * m} samples")
    return (reference if _plain(backend, low, high) else cpu).inverse_haar(low, high, n)


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


def _plain(backend: str, *tensors: Tensor) -> bool:
    """A compiler fuses plain PyTorch; a registered operator would be a barrier to it."""
    compiled = backend == "auto" and torch.compiler.is_compiling()
    return takes_reference(backend, *tensors) or compiled
