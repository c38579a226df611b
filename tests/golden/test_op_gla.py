"""Every golden case of gated linear attention: outputs, final states and gradients."""

from __future__ import annotations

import golden
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.gla import gla

TOLERANCE = 1e-5


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", golden_cases("op_gla"))
def test_op_gla(name: str, backend: str) -> None:
    case = golden.load(name, FOLDER)
    inputs = {key: torch.from_numpy(case.input(key)).float() for key in case.spec["inputs"]}
    bounds = case.config.get("cu_seqlens")
    wanted = {key: x.requires_grad_() for key, x in inputs.items() if not key.startswith("grad_")}
    assert case.config["layout"] == "BTHD"

    o, final_state = gla(
        *(inputs[key] for key in "qkvg"),
        scale=case.config.get("scale"),
        initial_state=inputs.get("initial_state"),
        cu_seqlens=None if bounds is None else torch.tensor(bounds),
        backend=backend,
    )
    loss = (o * inputs["grad_out"]).sum() if "grad_out" in inputs else o.sum()
    if "grad_state" in inputs:
        loss = loss + (final_state * inputs["grad_state"]).sum()
    gradients = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))
    outputs = {"o": o.detach(), "final_state": final_state.detach(), **{f"d{key}": x for key, x in gradients.items()}}
    for output in case.golden:
        case.check(output, outputs[output], TOLERANCE)
