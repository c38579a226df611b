"""Every golden case of gated linear attention: outputs, final states and gradients, in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.gla import gla


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("name", golden_cases("op_gla"))
def test_op_gla(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    assert case.config["layout"] == "BTHD"
    names = ["q", "k", "v", "g", *(["initial_state"] if "initial_state" in case.spec["inputs"] else [])]
    inputs = operators.golden_inputs(case, names, form)
    bounds = case.config.get("cu_seqlens")

    def run(q, k, v, g, state=None):
        packed = None if bounds is None else torch.tensor(bounds)
        scale = case.config.get("scale")
        return gla(q, k, v, g, scale=scale, initial_state=state, cu_seqlens=packed, backend=form)

    grads = [
        torch.from_numpy(case.input(grad))
        if grad in case.spec["inputs"]
        else fill(case.spec["outputs"][output]["shape"])
        for grad, output, fill in (("grad_out", "o", torch.ones), ("grad_state", "final_state", torch.zeros))
    ]
    found = operators.gradients(run, inputs, *grads)
    results = dict(zip(["o", "final_state", *(f"d{name}" for name in names)], found, strict=True))
    assert results.keys() >= case.golden.keys()
    operators.check_golden(case, {output: results[output] for output in case.golden})


def test_cases_are_found() -> None:
    assert golden_cases("op_gla")
