"""Kernel tests see NaN in all memory that nobody has written, and run Triton kernels without a GPU if need be."""

from __future__ import annotations

import operators  # noqa: F401  (before any kernel)
import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """``torch.empty`` and its relatives return NaN: a kernel that forgets an element is found."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # PyTorch fills new memory in this mode
    yield
    torch.use_deterministic_algorithms(False)
