"""How results are compared, and the type in which operators compute."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_error(result: Tensor, exact: Tensor) -> float:
    """``|result - exact| / |exact|`` in the Euclidean norm over all elements; ``|result|`` where ``exact`` is zero."""
    result, exact = result.detach().double(), exact.detach().double()
    difference, size = torch.linalg.vector_norm(result - exact), torch.linalg.vector_norm(exact)
    return float(difference / size if size > 0 else difference)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for the half types; float32 and float64 stay."""
    return torch.promote_types(dtype, torch.float32)
