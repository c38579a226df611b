"""Every golden case of gated attention: output and all gradients, in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.gated_sdpa import gated_sdpa

NAMES = ("q", "k", "v", "gate")


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("name", golden_cases("op_gated_sdpa"))
def test_op_gated_sdpa(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    assert case.config["layout"] == "BTHD"
    scale, causal = case.config.get("scale"), case.config["causal"]
    inputs = operators.golden_inputs(case, NAMES, form)
    grad_out = torch.from_numpy(case.input("grad_out"))

    def attention(*tensors: torch.Tensor) -> torch.Tensor:
        return gated_sdpa(*tensors, scale=scale, causal=causal, backend=form)

    found = operators.gradients(attention, inputs, grad_out)
    results = dict(zip(("o", *(f"d{name}" for name in NAMES)), found, strict=True))
    operators.check_golden(case, {output: results[output] for output in case.golden})


def test_cases_are_found() -> None:
    assert golden_cases("op_gated_sdpa")
