"""Every golden case of TPGN: all outputs of the official model, stage by stage."""

from __future__ import annotations

import golden
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.pretrained.tpgn import convert
from toolkit.tasks.forecast.tpgn import TPGN

TOLERANCE = 1e-5
STAGES = {  # golden name -> sub-module
    "history_hidden": "pgn.history",
    "gated_hidden": "pgn",
    "long_term": "row_aggregation",
    "short_term": "column_encoder",
}


@pytest.mark.parametrize("name", golden_cases("tpgn"))
def test_tpgn(name: str) -> None:
    case = golden.load(name, FOLDER)
    arguments, state = convert(case.state(), **case.config)
    model = TPGN(**arguments).eval()
    model.load_state_dict(state)

    outputs: dict[str, torch.Tensor] = {}
    for output, module in STAGES.items():
        model.get_submodule(module).register_forward_hook(
            lambda _module, _args, value, output=output: outputs.update({output: value})
        )
    x, marks = (torch.from_numpy(case.input(key)).float() for key in ("x_enc", "x_mark_enc"))
    with torch.no_grad():
        outputs["forecast"] = model(x, marks)

    columns = (model.num_variates, len(x), model.period_len)
    for output in ("history_hidden", "gated_hidden"):  # [c, B q, R, d] to [B, R, q, c, d]
        outputs[output] = outputs[output].unflatten(1, columns[1:]).permute(1, 3, 2, 0, 4)
    outputs["long_term"] = outputs["long_term"].view(*columns, -1).permute(1, 2, 0, 3)
    short_term = outputs["short_term"].transpose(0, 1)  # the official code copies it to every column
    outputs["short_term"] = short_term.unsqueeze(1).expand(-1, model.period_len, -1, -1)
    forecast = outputs["forecast"]
    if model.norm:
        scale = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
        forecast = (forecast - x.mean(1, keepdim=True)) / scale
    outputs["normalised_forecast"] = forecast

    for output in case.golden:
        case.check(output, outputs[output], TOLERANCE)
