"""Every golden case of the Haar transform: both bands and the gradient, in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.haar import haar


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("name", golden_cases("op_haar"))
def test_op_haar(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    axis = case.config.get("axis", -1)
    grads = [torch.from_numpy(case.input(key)) for key in ("grad_low", "grad_high")]

    def transform(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = haar(x.movedim(axis, -1), backend=form)
        return low.movedim(-1, axis), high.movedim(-1, axis)

    found = operators.gradients(transform, operators.golden_inputs(case, ["x"], form), *grads)
    results = dict(zip(("low", "high", "dx"), found, strict=True))
    operators.check_golden(case, {output: results[output] for output in case.golden})


def test_cases_are_found() -> None:
    assert golden_cases("op_haar")
