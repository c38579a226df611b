"""Every golden case of the spatial gating unit: output and all gradients, in flax's kernel layout."""

from __future__ import annotations

import golden
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.spatial_gate import spatial_gate

TOLERANCE = 1e-5
AXES = {"grid": 1, "block": 2}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", golden_cases("op_gmlp"))
def test_op_gmlp(name: str, backend: str) -> None:
    case = golden.load(name, FOLDER)
    x, grad_out = (torch.from_numpy(case.input(key)).float() for key in ("x", "grad_out"))
    inputs = {"x": x} | {key: torch.from_numpy(value) for key, value in case.state().items()}
    keys = ["x", "gate.kernel", "gate.bias", "norm.scale", "norm.bias"]
    tensors = [inputs[key].requires_grad_() for key in keys]
    axis = AXES[case.config["mix_axis"].split()[0]]

    y = spatial_gate(*tensors, axis=axis, eps=case.config["eps"], backend=backend)
    gradients = torch.autograd.grad((y * grad_out).sum(), tensors)
    outputs = {"y": y.detach(), **{f"d{key}": value for key, value in zip(keys, gradients, strict=True)}}
    for output in case.golden:
        case.check(output, outputs[output], TOLERANCE)
