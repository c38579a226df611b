"""Second derivatives of operators whose fast form has a hand-written first derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiable_gradients(
    definition: Callable[..., Tensor], inputs: Sequence[Tensor], dy: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of ``definition(*inputs)`` for ``dy`` that can be differentiated again; None where none is wanted."""
    # A view is a node of its own, so that a tensor which is passed twice gets its two gradients apart.
    inputs = [tensor.view_as(tensor) for tensor in inputs]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    gradients = iter(torch.autograd.grad(definition(*inputs), wanted, dy, create_graph=True))
    return tuple(next(gradients) if tensor.requires_grad else None for tensor in inputs)
