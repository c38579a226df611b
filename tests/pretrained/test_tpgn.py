"""Official TPGN checkpoints: every channel and row lands where the official layout says, and problems are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import toolkit
from toolkit.errors import InputError
from toolkit.pretrained.tpgn import convert
from toolkit.tasks.forecast.tpgn import TPGN

SIZES = {"lookback": 18, "horizon": 12, "num_variates": 3, "num_marks": 2, "period_len": 6, "dim": 4}


def official_state(model: TPGN) -> dict[str, Tensor]:
    """Our weights in the official layout, channel after channel, oldest step first, written out one by one."""
    channels, d, q = model.num_variates, model.dim, model.period_len
    rows, features = model.lookback // q, 1 + model.num_marks

    def stack(blocks: list[Tensor]) -> Tensor:
        return torch.cat([block.detach() for block in blocks])

    def steps_last(weight: Tensor, steps: int) -> Tensor:
        """``[steps * in, out]`` to ``[out, in, steps]``."""
        return weight.view(steps, -1, weight.shape[1]).permute(2, 1, 0)

    every = range(channels)
    history = [model.pgn.history.weight[k].flip(0).permute(2, 1, 0) for k in every]
    gate = [torch.cat((model.pgn.gate_input.weight[k], model.pgn.gate_history.weight[k])).t() for k in every]
    output = [torch.cat((model.output_short.weight[k], model.output_long.weight[k])).t() for k in every]
    weights = {
        "LNN_dim.hidden_MLP": (stack(history), model.pgn.history.bias),
        "LNN_dim.gate": (stack(gate)[..., None], model.pgn.gate_input.bias),
        "LNN_dim.fc": (
            stack([steps_last(model.row_aggregation.weight[k], rows) for k in every]),
            model.row_aggregation.bias,
        ),
        "s_t_p_e.fc_row": (stack([steps_last(model.row_encoder.weight[k], q) for k in every]), model.row_encoder.bias),
        "s_t_p_e.fc_col": (
            stack([steps_last(model.column_encoder.weight[k], rows) for k in every]),
            model.column_encoder.bias,
        ),
        "fc": (stack(output)[..., None], model.output_short.bias),
    }
    assert weights["LNN_dim.hidden_MLP"][0].shape == (channels * d, features, rows - 1)
    state: dict[str, Tensor] = {}
    for name, (weight, bias) in weights.items():
        assert bias is not None
        state |= {f"TPGN.{name}.weight": weight, f"TPGN.{name}.bias": bias.detach().flatten()}
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    "sizes", [{}, {"num_variates": 1}, {"num_marks": 0}, {"dim": 1}, {"lookback": 12, "horizon": 6}, {"period_len": 1}]
)
def test_round_trip(sizes: dict[str, int], prefix: str) -> None:
    source = TPGN(**{**SIZES, **sizes}, norm=True)
    state = {prefix + name: value for name, value in official_state(source).items()}
    arguments, converted = convert(state, norm=1)
    assert arguments == {**SIZES, **sizes, "norm": True}
    assert set(converted) == set(source.state_dict())
    for name, value in source.state_dict().items():
        torch.testing.assert_close(converted[name], value, rtol=0, atol=0)


def test_files_become_model_directories(tmp_path) -> None:
    source = TPGN(**SIZES)
    torch.save(official_state(source), tmp_path / "checkpoint.pth")
    model = toolkit.load(toolkit.convert("tpgn", tmp_path / "checkpoint.pth", tmp_path / "model", enc_in=3, freq="d"))
    x, marks = torch.randn(2, 18, 3), torch.rand(2, 18, 2)
    torch.testing.assert_close(model(x, marks), source(x, marks))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"d_model": 32}, "dim is given as 32, but the checkpoint has 4"),
        ({"pred_len": 24}, "horizon is given as 24, but the checkpoint has 12"),
        ({"TPGN_perod": 6}, "unknown option 'TPGN_perod'. Did you mean 'TPGN_period'"),
        ({"seq_len": 18, "lookback": 24}, "lookback is 24, but lookback is 18"),
    ],
)
def test_rejects_options(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(official_state(TPGN(**SIZES)), **config)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("LNN_dim.fc.weight", None, "the checkpoint has no entry 'TPGN.LNN_dim.fc.weight'"),
        ("fc.bias", torch.zeros(2, 3), r"'TPGN.fc.bias' has shape \(2, 3\). It should be \(c P\)"),
        (
            "fc.weight",
            torch.zeros(6, 9, 1),
            r"'TPGN.fc.weight' has shape \(6, 9, 1\), the other entries ask for \(6, 8, 1\)",
        ),
        (
            "LNN_dim.fc.bias",
            torch.zeros(11),
            r"'TPGN.LNN_dim.fc.bias' has shape \(11,\), the other entries ask for \(12,\)",
        ),
        ("fc.bias", torch.zeros(7), r"'TPGN.fc.bias' has shape \(7,\), the other entries ask for \(6,\)"),
        ("s_t_p_e.fc_row.weight", torch.zeros(0, 3, 6), "has shape"),
        (
            "LNN_dim.hidden_MLP.weight",
            torch.zeros(12, 3, 9),
            r"has shape \(12, 3, 9\), the other entries ask for \(12, 3, 2\)",
        ),
    ],
)
def test_names_what_does_not_fit(entry: str, value: Tensor | None, message: str) -> None:
    state = official_state(TPGN(**SIZES))
    if value is None:
        del state[f"TPGN.{entry}"]
    else:
        state[f"TPGN.{entry}"] = value
    with pytest.raises(InputError, match=message):
        convert(state)


def test_strangers_are_listed_by_the_loader() -> None:
    with pytest.raises(InputError, match="unexpected: extra.weight"):
        toolkit.from_official("tpgn", {**official_state(TPGN(**SIZES)), "extra.weight": torch.zeros(1)})
