"""Every golden case of GDKVM's memory as an operator: readouts, states and gradients, in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.gdkvm_memory import gdkvm_memory

PARAMETERS = {"a_proj": "a_proj.weight", "b_proj": "b_proj.weight", "A_log": "A_log", "dt_bias": "dt_bias"}


@pytest.mark.parametrize("form", ["reference", "torch"])
@pytest.mark.parametrize("name", golden_cases("op_gdkvm_memory"))
def test_op_gdkvm_memory(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    stored = case.state()
    parameters = [torch.from_numpy(stored[key]).requires_grad_() for key in PARAMETERS.values()]
    assert len(parameters[2]) == case.config["heads"]

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        options = {"decay": "raw", "alpha_expand": "tile", "key_scale": "none"}
        options |= {key: case.config[key] for key in options if key in case.config}
        return gdkvm_memory(*tensors, **options, backend=form)

    inputs = [*operators.golden_inputs(case, ["key", "value"], form), *parameters]
    readout, states = run(*inputs)
    grad_readout = torch.from_numpy(case.input("grad_readout")).to(readout)
    gradients = torch.autograd.grad(readout, inputs, grad_readout, materialize_grads=True)  # one frame has no gates
    found = dict(zip(["dkey", "dvalue", *(f"d{key}" for key in PARAMETERS.values())], gradients, strict=True))
    results = {"readout": readout, "state": states, **found}
    assert results.keys() >= case.golden.keys()
    operators.check_golden(case, {output: results[output] for output in case.golden})


def test_cases_are_found() -> None:
    assert golden_cases("op_gdkvm_memory")
