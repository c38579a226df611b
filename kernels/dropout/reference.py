"""The definition of dropout factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dropout_masks(shapes: Sequence[Sequence[int]], p: float, like: Tensor) -> list[Tensor]:
    """A factor per element: 0 with probability ``p``, otherwise ``1 / (1 - p)``."""
    keep = 1 - p
    return [torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(keep).div_(keep) for shape in shapes]
