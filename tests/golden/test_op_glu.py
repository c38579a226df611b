"""Every golden case of gated fusion and the GLU family: outputs and gradients, in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels import gated_fusion as operator


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("name", golden_cases("op_glu"))
def test_op_glu(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    grad_out = torch.from_numpy(case.input("grad_out"))
    results = {}
    for kind in case.config["definitions"]:
        names = ["x", "a", "b"] if kind == "gated_fusion" else ["x", "a"]
        inputs = operators.golden_inputs(case, names, form)
        function = getattr(operator, kind)
        found = operators.gradients(lambda *tensors, f=function: f(*tensors, backend=form), inputs, grad_out)
        results |= dict(zip([kind, *(f"{kind}_d{name}" for name in names)], found, strict=True))
    assert results.keys() == case.golden.keys()
    operators.check_golden(case, results)


def test_cases_are_found() -> None:
    assert golden_cases("op_glu")
