"""Every golden case of gated attention: output and all gradients."""

from __future__ import annotations

import golden
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.gated_sdpa import gated_sdpa

TOLERANCE = 1e-5
NAMES = ("q", "k", "v", "gate")


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", golden_cases("op_gated_sdpa"))
def test_op_gated_sdpa(name: str, backend: str) -> None:
    case = golden.load(name, FOLDER)
    *inputs, grad_out = (torch.from_numpy(case.input(key)).float() for key in (*NAMES, "grad_out"))
    for x in inputs:
        x.requires_grad_()
    assert case.config["layout"] == "BTHD"

    o = gated_sdpa(*inputs, scale=case.config.get("scale"), causal=case.config["causal"], backend=backend)
    gradients = torch.autograd.grad((o * grad_out).sum(), inputs)
    outputs = {"o": o.detach(), **{f"d{key}": x for key, x in zip(NAMES, gradients, strict=True)}}
    for output in case.golden:
        case.check(output, outputs[output], TOLERANCE)
