"""Every golden case of bidirectional gated linear attention: outputs, each direction, gradients."""

from __future__ import annotations

import golden
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.bidirectional_gla import bidirectional_gla
from toolkit.kernels.gla import gla

TOLERANCE = 1e-5


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", golden_cases("op_bigla"))
def test_op_bigla(name: str, backend: str) -> None:
    case = golden.load(name, FOLDER)
    inputs = {key: torch.from_numpy(case.input(key)).float() for key in case.spec["inputs"]}
    bounds = case.config.get("cu_seqlens")
    wanted = {key: x.requires_grad_() for key, x in inputs.items() if not key.startswith("grad_")}
    q, k, v, g_forward, g_backward = (inputs[key] for key in ("q", "k", "v", "g_forward", "g_backward"))
    packed = None if bounds is None else torch.tensor(bounds)
    flipped = None if bounds is None else torch.tensor([bounds[-1] - bound for bound in reversed(bounds)])
    options = {"scale": case.config.get("scale"), "backend": backend}
    assert case.config["layout"] == "BTHD"

    o = bidirectional_gla(q, k, v, g_forward, g_backward, cu_seqlens=packed, **options)
    loss = (o * inputs["grad_out"]).sum() if "grad_out" in inputs else o.sum()
    gradients = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))
    outputs = {"o": o, **{f"d{key}": x for key, x in gradients.items()}}
    outputs["o_forward"] = gla(q, k, v, g_forward, cu_seqlens=packed, **options)[0]
    outputs["o_backward"] = gla(*(x.flip(1) for x in (q, k, v, g_backward)), cu_seqlens=flipped, **options)[0].flip(1)
    for output in case.golden:
        case.check(output, outputs[output].detach(), TOLERANCE)
