"""Every golden case of ViG's operator: sigmoid gates with a normaliser, heads before time."""

from __future__ import annotations

import golden
import pytest
import torch
import torch.nn.functional as F
from families import FOLDER, golden_cases

from toolkit.kernels.bidirectional_gla import bidirectional_gla
from toolkit.kernels.gla import gla

TOLERANCE = 1e-5


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", golden_cases("vig_bigla"))
def test_vig_bigla(name: str, backend: str) -> None:
    case = golden.load(name, FOLDER)
    layout = case.config["layout"].replace(",", "")
    assert layout in ("BHTD", "BTHD")
    inputs = {key: torch.from_numpy(case.input(key)).float() for key in case.spec["inputs"]}
    if layout == "BHTD":
        inputs = {key: x.transpose(1, 2) for key, x in inputs.items()}
    q, k, v = (inputs[key] for key in "qkv")
    gates = [F.logsigmoid(inputs[f"gate_logits_{way}"]) / case.config["gate_logit_normalizer"] for way in ("fw", "bw")]

    outputs = {
        "out": bidirectional_gla(q, k, v, *gates, backend=backend),
        "out_fw": gla(q, k, v, gates[0], backend=backend)[0],
        "out_bw": gla(*(x.flip(1) for x in (q, k, v, gates[1])), backend=backend)[0].flip(1),
    }
    for output in case.golden:
        case.check(output, outputs[output].transpose(1, 2) if layout == "BHTD" else outputs[output], TOLERANCE)
