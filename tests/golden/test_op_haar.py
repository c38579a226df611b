"""Every golden case of the Haar transform: both bands and the gradient."""

from __future__ import annotations

import golden
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.haar import haar

TOLERANCE = 1e-5


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", golden_cases("op_haar"))
def test_op_haar(name: str, backend: str) -> None:
    case = golden.load(name, FOLDER)
    x, grad_low, grad_high = (torch.from_numpy(case.input(key)).float() for key in ("x", "grad_low", "grad_high"))
    axis = case.config.get("axis", -1)
    low, high = (band.movedim(-1, axis) for band in haar(x.requires_grad_().movedim(axis, -1), backend=backend))
    (dx,) = torch.autograd.grad((low * grad_low).sum() + (high * grad_high).sum(), x)
    outputs = {"low": low.detach(), "high": high.detach(), "dx": dx}
    for output in case.golden:
        case.check(output, outputs[output], TOLERANCE)
