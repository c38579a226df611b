"""Every golden case of the gated delta rule: outputs, final states and gradients, in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.errors import InputError
from toolkit.kernels.gated_delta_rule import gated_delta_rule

NAMES = ("q", "k", "v", "g", "beta", "initial_state")


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("name", golden_cases("op_gdr"))
def test_op_gdr(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    names = [key for key in NAMES if key in case.spec["inputs"]]
    bounds = case.config.get("cu_seqlens")
    assert case.config["layout"] == "BTHD"

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        arguments = dict(zip(names, tensors, strict=True))
        return gated_delta_rule(
            **arguments,
            scale=case.config.get("scale"),
            qk_l2norm=case.config.get("qk_l2norm", False),
            cu_seqlens=None if bounds is None else torch.tensor(bounds, device=tensors[0].device),
            backend=form,
        )

    inputs = operators.golden_inputs(case, names, form)
    if form == "triton" and (inputs[0].shape[-1] > 64 or inputs[2].shape[-1] > 512):  # the kernels' limits in float32
        with pytest.raises(InputError, match="asks gated_delta_rule for triton, but K = "):
            run(*inputs)
        return
    grads = [
        torch.from_numpy(case.input(key)) if key in case.spec["inputs"] else torch.zeros(shape)
        for key, shape in (
            ("grad_out", case.spec["outputs"]["o"]["shape"]),
            ("grad_state", case.spec["outputs"]["final_state"]["shape"]),
        )
    ]
    found = operators.gradients(run, inputs, *grads)
    results = dict(zip(["o", "final_state", *(f"d{key}" for key in names)], found, strict=True))
    operators.check_golden(case, {key: results[key] for key in case.golden})


def test_cases_are_found() -> None:
    assert golden_cases("op_gdr")
