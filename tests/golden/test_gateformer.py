"""Every golden case of Gateformer: all outputs of the official model, stage by stage."""

from __future__ import annotations

import golden
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.pretrained.gateformer import convert
from toolkit.tasks.forecast.gateformer import Gateformer

TOLERANCE = 1e-5
STAGES = {  # golden name -> sub-module
    "patch_embedding": "patch_embedding",
    "global_embedding": "global_embedding",
    "temporal_encoder": "temporal_encoder",
    "temporal_embedding": "temporal_embedding",
    "variate_embedding": "variate_embedding",
    "variate_encoder": "variate_encoder",
    "gated_output": "gated_output",
    "normalised_forecast": "normalised_forecast",
}


def stage_of(output: str) -> str:
    for encoder in ("temporal", "variate"):
        if output.startswith(f"{encoder}_layer"):
            return f"{encoder}_encoder.layers.{output.removeprefix(f'{encoder}_layer')}"
    return STAGES[output]


@pytest.mark.parametrize("name", golden_cases("gateformer"))
def test_gateformer(name: str) -> None:
    case = golden.load(name, FOLDER)
    arguments, state = convert(case.state(), **case.config)
    model = Gateformer(**arguments).eval()
    model.load_state_dict(state)

    outputs: dict[str, torch.Tensor] = {}
    for output in set(case.golden) - {"forecast"}:
        module = model.get_submodule(stage_of(output))
        module.register_forward_hook(lambda _module, _args, value, output=output: outputs.update({output: value}))
    inputs = [torch.from_numpy(case.input(key)) for key in case.spec["inputs"]]
    with torch.no_grad():
        outputs["forecast"] = model(inputs[0])

    for output in case.golden:
        value = outputs[output]
        if output == "normalised_forecast":
            value = value.transpose(1, 2)  # the model projects variate tokens
        elif output == "temporal_embedding":
            value = value.view(len(inputs[0]), -1, model.dim)
        case.check(output, value, TOLERANCE)
