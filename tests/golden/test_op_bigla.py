"""Every golden case of bidirectional gated linear attention: outputs, each direction, gradients, in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.bidirectional_gla import bidirectional_gla
from toolkit.kernels.gla import gla

NAMES = ["q", "k", "v", "g_forward", "g_backward"]


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("name", golden_cases("op_bigla"))
def test_op_bigla(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    assert case.config["layout"] == "BTHD"
    inputs = operators.golden_inputs(case, NAMES, form)
    bounds = case.config.get("cu_seqlens")
    packed = None if bounds is None else torch.tensor(bounds)
    flipped = None if bounds is None else torch.tensor([bounds[-1] - bound for bound in reversed(bounds)])
    options = {"scale": case.config.get("scale"), "backend": form}

    has_grad = "grad_out" in case.spec["inputs"]
    do = torch.from_numpy(case.input("grad_out")) if has_grad else torch.ones(case.spec["outputs"]["o"]["shape"])
    found = operators.gradients(lambda *x: bidirectional_gla(*x, cu_seqlens=packed, **options), inputs, do)
    results = dict(zip(["o", *(f"d{name}" for name in NAMES)], found, strict=True))
    q, k, v, g_forward, g_backward = (x.detach() for x in inputs)
    results["o_forward"] = gla(q, k, v, g_forward, cu_seqlens=packed, **options)[0]
    results["o_backward"] = gla(*(x.flip(1) for x in (q, k, v, g_backward)), cu_seqlens=flipped, **options)[0].flip(1)
    assert results.keys() >= case.golden.keys()
    operators.check_golden(case, {output: results[output] for output in case.golden})


def test_cases_are_found() -> None:
    assert golden_cases("op_bigla")
