"""Every golden case of ViG's operator: sigmoid gates with a normaliser, heads before time; in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
import torch.nn.functional as F
from families import FOLDER, golden_cases

from toolkit.kernels.bidirectional_gla import bidirectional_gla
from toolkit.kernels.gla import gla


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("name", golden_cases("vig_bigla"))
def test_vig_bigla(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    layout = case.config["layout"].replace(",", "")
    assert layout in ("BHTD", "BTHD")

    def turned(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2) if layout == "BHTD" else x

    names = ["q", "k", "v", "gate_logits_fw", "gate_logits_bw"]
    q, k, v, *logits = (turned(x.detach()) for x in operators.golden_inputs(case, names, form))
    gates = [F.logsigmoid(x) / case.config["gate_logit_normalizer"] for x in logits]
    results = {
        "out": bidirectional_gla(q, k, v, *gates, backend=form),
        "out_fw": gla(q, k, v, gates[0], backend=form)[0],
        "out_bw": gla(*(x.flip(1) for x in (q, k, v, gates[1])), backend=form)[0].flip(1),
    }
    assert results.keys() >= case.golden.keys()
    operators.check_golden(case, {output: turned(results[output]) for output in case.golden})


def test_cases_are_found() -> None:
    assert golden_cases("vig_bigla")
