"""Dropout: ``dropout(x, p)``, and the factors alone, ``dropout_masks(shapes, p, like)``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from toolkit.kernels._common.dispatch import runs_fast_on_cpu
from toolkit.kernels.dropout import cpu, reference

__all__ = ["dropout", "dropout_masks"]


def dropout_masks(shapes: Sequence[Sequence[int]], p: float, like: Tensor) -> list[Tensor]:
    """Independent factors 0 (with probability ``p``) and ``1 / (1 - p)`` for tensors of the given shapes.

    Args:
        shapes: one per mask.
        p: probability of an element to be dropped, in [0, 1).
        like: a tensor with the wanted type and device.
    """
    form = cpu if runs_fast_on_cpu(like) else reference
    return form.dropout_masks(shapes, p, like)


def dropout(x: Tensor, p: float) -> Tensor:
    """``x`` with each element set to 0 with probability ``p`` and scaled by ``1 / (1 - p)`` otherwise."""
    return x * dropout_masks([x.shape], p, x)[0] if p > 0 else x
