"""Every golden case of the gated recursive convolution: output, recursion steps, all gradients, in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.gnconv import Weights, gnconv_steps


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("name", golden_cases("op_gnconv"))
def test_op_gnconv(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    assert case.config["layout"] == "BCHW"
    state, device = case.state(), operators.device_of(form)
    (x,) = operators.golden_inputs(case, ["x"], form)
    inputs = {"x": x} | {key: torch.from_numpy(value).to(device).requires_grad_() for key, value in state.items()}
    pws = range(case.config["order"] - 1)
    weights = Weights(
        *(inputs[f"{layer}.{kind}"] for layer in ("proj_in", "dwconv") for kind in ("weight", "bias")),
        tuple(inputs[f"pws.{i}.weight"] for i in pws),
        tuple(inputs[f"pws.{i}.bias"] for i in pws),
        inputs.get("proj_out.weight"),
        inputs.get("proj_out.bias"),
    )

    y, steps = gnconv_steps(x, weights, scale=case.config["scale"], backend=form)
    grad_out = torch.from_numpy(case.input("grad_out")).to(device)
    gradients = torch.autograd.grad((y * grad_out).sum(), list(inputs.values()))
    results = {"y": y, **{f"step_{i}": step for i, step in enumerate(steps)}}
    results |= {f"d{key}": gradient for key, gradient in zip(inputs, gradients, strict=True)}
    operators.check_golden(case, {output: results[output] for output in case.golden})


def test_cases_are_found() -> None:
    assert golden_cases("op_gnconv")
