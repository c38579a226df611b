"""Every golden case of the gated recursive convolution: output, recursion steps, all gradients."""

from __future__ import annotations

import golden
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.gnconv import Weights, gnconv_steps

TOLERANCE = 1e-5


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", golden_cases("op_gnconv"))
def test_op_gnconv(name: str, backend: str) -> None:
    case = golden.load(name, FOLDER)
    x, grad_out = (torch.from_numpy(case.input(key)).float() for key in ("x", "grad_out"))
    inputs = {"x": x} | {key: torch.from_numpy(value) for key, value in case.state().items()}
    for tensor in inputs.values():
        tensor.requires_grad_()
    pws = range(case.config["order"] - 1)
    weights = Weights(
        *(inputs[f"{layer}.{kind}"] for layer in ("proj_in", "dwconv") for kind in ("weight", "bias")),
        tuple(inputs[f"pws.{i}.weight"] for i in pws),
        tuple(inputs[f"pws.{i}.bias"] for i in pws),
        inputs.get("proj_out.weight"),
        inputs.get("proj_out.bias"),
    )
    assert case.config["layout"] == "BCHW"

    y, steps = gnconv_steps(x, weights, scale=case.config["scale"], backend=backend)
    gradients = torch.autograd.grad((y * grad_out).sum(), list(inputs.values()))
    outputs = {"y": y, **{f"step_{i}": step for i, step in enumerate(steps)}}
    outputs |= {f"d{key}": gradient for key, gradient in zip(inputs, gradients, strict=True)}
    for output in case.golden:
        case.check(output, outputs[output].detach(), TOLERANCE)
