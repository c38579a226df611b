"""Gradients of an operator that is a pair of ``torch.library`` custom operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef


def register_gradient(
    forward: CustomOpDef,
    backward: CustomOpDef,
    definition: Callable[..., Any],
    differentiable_outputs: int = 1,
    saved_outputs: Sequence[int] = (),
) -> None:
    """Make ``backward`` the gradient of ``forward``.

    A second derivative goes through ``definition``, which is differentiable as often as one likes.

    Args:
        forward: takes inputs, the last of them ``backend``.
        backward: takes the gradients of the differentiable outputs (None for one that nobody used), then the saved
            outputs, then all of ``forward``'s inputs. Returns a list with the gradient of each floating input that
            is not None, in their order.
        definition: takes ``forward``'s inputs without ``backend``; returns the differentiable outputs.
        differentiable_outputs: the first so many outputs of ``forward``; the others are only there to be saved.
        saved_outputs: positions of the outputs that ``backward`` reads.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.set_materialize_grads(False)
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.others = [value for value in inputs if not isinstance(value, Tensor)]
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.save_for_backward(*tensors, *(outputs[position] for position in saved_outputs))

    def gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = grads[:differentiable_outputs]
        saved, others = iter(ctx.saved_tensors), iter(ctx.others)
        inputs = [next(saved) if is_tensor else next(others) for is_tensor in ctx.is_tensor]
        wanted = [isinstance(value, Tensor) and value.is_floating_point() for value in inputs]
        if torch.is_grad_enabled():  # the caller will differentiate again
            found = _of_definition(definition, inputs[:-1], grads)
        elif all(grad is None for grad in grads):
            found = iter([None] * sum(wanted))
        else:
            found = iter(backward(*grads, *saved, *inputs))
        return tuple(next(found) if is_wanted else None for is_wanted in wanted)

    forward.register_autograd(gradients, setup_context=setup_context)


def _of_definition(definition: Callable[..., Any], inputs: Sequence[Any], grads: Sequence[Tensor | None]) -> Any:
    """Iterator over the gradients of the floating inputs, differentiable again."""
    # A view is a node of its own, so that a tensor which is passed twice gets the two gradients apart.
    inputs = [value.view_as(value) if isinstance(value, Tensor) else value for value in inputs]
    outputs = definition(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    used = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    floating = [value for value in inputs if isinstance(value, Tensor) and value.is_floating_point()]
    wanted = [value for value in floating if value.requires_grad]
    if not used:
        return iter([None] * len(floating))
    outputs, grads = zip(*used, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return iter([next(found) if value.requires_grad else None for value in floating])
