"""What the tests of operators share. Imported before any kernel: without a GPU, Triton kernels run in its interpreter.

On a machine with a GPU the same tests run the compiled kernels on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import golden
import torch
from torch import Tensor

TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if TRITON_DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.pop("TOOLKIT_KERNELS", None)

FORMS = ("reference", "torch", *(("triton",) if find_spec("triton") else ()))
TOLERANCE = 1e-5


def device_of(form: str) -> str:
    return TRITON_DEVICE if form == "triton" else "cpu"


def golden_inputs(
    case: golden.Case, names: Sequence[str], form: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Inputs of a case as leaves that want gradients, where ``form`` runs."""
    return [torch.from_numpy(case.input(name)).to(device_of(form), dtype).requires_grad_() for name in names]


def gradients(function: Callable[..., Any], inputs: Sequence[Tensor], *grads: Tensor) -> list[Tensor]:
    """The outputs of ``function(*inputs)``, then the gradients of the inputs that want one, for ``grads``."""
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    grads_on = [grad.to(output.device, output.dtype) for grad, output in zip(grads, outputs, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, wanted, grads_on)]


def check_golden(case: golden.Case, results: Mapping[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Every result against the golden output of its name."""
    for name, result in results.items():
        case.check(name, result.detach().cpu(), tolerance)
