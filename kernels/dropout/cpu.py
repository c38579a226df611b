"""Dropout factors on a CPU: one 64-bit draw is four 16-bit numbers, each compared with a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = 2**16


def dropout_masks(shapes: Sequence[Sequence[int]], p: float, like: Tensor) -> list[Tensor]:
    """See ``reference.dropout_masks``; ``p`` is rounded to a multiple of 1/65,536, and all masks share one draw."""
    sizes = [math.prod(shape) for shape in shapes]
    numel = sum(sizes)
    words = torch.empty((numel + 3) // 4, dtype=torch.int64)
    words.random_(-(2**63), None)  # type: ignore[call-overload]  # the full range: every bit is random
    lowest_kept = min(max(round(p * LEVELS), 1), LEVELS - 1) - LEVELS // 2
    # Clamping to two neighbouring integers is a comparison that is vectorised; the boolean one is not.
    keep = words.view(torch.int16).clamp_(lowest_kept - 1, lowest_kept).sub_(lowest_kept - 1)
    factors = keep[:numel].to(like.dtype).mul_(1 / (1 - p))
    return [mask.view(shape) for mask, shape in zip(factors.split(sizes), shapes, strict=True)]
