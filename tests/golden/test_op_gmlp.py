"""Every golden case of the spatial gating unit: output and all gradients, in flax's kernel layout, in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.spatial_gate import spatial_gate

AXES = {"grid": 1, "block": 2}
STATE = ("gate.kernel", "gate.bias", "norm.scale", "norm.bias")


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("name", golden_cases("op_gmlp"))
def test_op_gmlp(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    axis, eps = AXES[case.config["mix_axis"].split()[0]], case.config["eps"]
    inputs, state = operators.golden_inputs(case, ["x"], form), case.state()
    inputs += [torch.from_numpy(state[key]).to(operators.device_of(form)).requires_grad_() for key in STATE]
    grad_out = torch.from_numpy(case.input("grad_out"))

    def gate(*tensors: torch.Tensor) -> torch.Tensor:
        return spatial_gate(*tensors, axis=axis, eps=eps, backend=form)

    found = operators.gradients(gate, inputs, grad_out)
    results = dict(zip(("y", "dx", *(f"d{key}" for key in STATE)), found, strict=True))
    operators.check_golden(case, {output: results[output] for output in case.golden})


def test_cases_are_found() -> None:
    assert golden_cases("op_gmlp")
