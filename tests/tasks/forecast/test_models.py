"""Forecasting models: shapes, invariances, argument checks, checkpoints."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from toolkit.errors import InputError
from toolkit.pretrained.gateformer import convert
from toolkit.tasks.forecast.dlinear import DLinear
from toolkit.tasks.forecast.gateformer import Gateformer
from toolkit.tasks.forecast.itransformer import ITransformer
from toolkit.tasks.forecast.seasonal_naive import SeasonalNaive

SMALL: dict[type[nn.Module], dict[str, Any]] = {
    Gateformer: {"dim": 16, "depth": 1, "num_heads": 4, "mlp_dim": 8},
    DLinear: {},
    ITransformer: {"dim": 16, "depth": 1, "num_heads": 4, "mlp_dim": 8},
    SeasonalNaive: {"period": 24},
}


def small(model: type[nn.Module], lookback: int = 48, horizon: int = 12, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return model(lookback, horizon, **{**SMALL[model], **options})


@pytest.mark.parametrize("model", SMALL)
@pytest.mark.parametrize(("batch", "variates"), [(1, 1), (3, 7), (2, 90)])
def test_shapes_and_kept_arguments(model: type[nn.Module], batch: int, variates: int) -> None:
    network = small(model)
    assert network(torch.randn(batch, 48, variates)).shape == (batch, 12, variates)
    rebuilt = model(**{name: getattr(network, name) for name in inspect.signature(model).parameters})
    rebuilt.load_state_dict(network.state_dict())


@pytest.mark.parametrize("model", SMALL)
def test_equivariant_to_the_order_of_variates(model: type[nn.Module]) -> None:
    network, x, order = small(model).eval(), torch.randn(2, 48, 5), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(network(x[..., order]), network(x)[..., order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lookback", "patch_len", "stride"),
    [(48, 8, 8), (50, 16, 8), (50, 8, 16), (9, 9, 1), (200, 4, 2), (10, 1, 11)],
)
def test_gateformer_patches(lookback: int, patch_len: int, stride: int) -> None:
    network = small(Gateformer, lookback, patch_len=patch_len, stride=stride)
    y = network(torch.randn(2, lookback, 3))
    y.sum().backward()
    assert y.shape == (2, 12, 3)
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_gateformer_parameter_count() -> None:
    network = Gateformer(96, 96, dim=64, depth=1, num_heads=4, mlp_dim=64)
    assert sum(parameter.numel() for parameter in network.parameters()) == 133_344


def test_gateformer_learns_as_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout, training with the fast operators and with their definitions is the same."""
    x, y = torch.randn(4, 48, 3), torch.randn(4, 12, 3)

    def losses() -> list[float]:
        network = small(Gateformer, dropout=0.0)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        values = []
        for _ in range(10):
            loss = F.mse_loss(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    fast = losses()
    for kernel in ("encoder_layer", "linear_gate"):
        monkeypatch.setattr(f"toolkit.kernels.{kernel}.runs_fast_on_cpu", lambda *_: False)
    assert losses() == pytest.approx(fast, abs=1e-5)
    assert fast[-1] < fast[0]


def test_gateformer_resumes_from_the_generator_state() -> None:
    network, x = small(Gateformer, dropout=0.3), torch.randn(2, 48, 3)
    state = torch.get_rng_state()
    first = network(x)
    torch.set_rng_state(state)
    assert torch.equal(network(x), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookback": 4}, "lookback 4 is shorter than patch_len 8"),
        ({"dim": 15, "num_heads": 3}, "dim 15 is odd"),
        ({"dim": 18}, "dim 18 is not divisible by num_heads 4"),
        ({"depth": 0}, "depth is 0"),
        ({"stride": -1}, "stride is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_gateformer_rejects(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(Gateformer, **options)


def test_float64_and_bfloat16() -> None:
    network, x = small(Gateformer).eval(), torch.randn(2, 48, 3)
    expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert (network(x) - expected).norm() < 0.05 * expected.norm()
    torch.testing.assert_close(network.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-5)


def test_exports() -> None:
    network, x = small(Gateformer).eval(), torch.randn(2, 48, 3)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), network(x), rtol=1e-4, atol=1e-5)


def test_dlinear_starts_as_the_mean() -> None:
    network, x = small(DLinear), torch.randn(2, 48, 3)
    nn.init.zeros_(network.seasonal.bias)
    nn.init.zeros_(network.trend.bias)
    torch.testing.assert_close(network(x), x.mean(1, keepdim=True).expand(-1, 12, -1), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="kernel_size is 4"):
        small(DLinear, kernel_size=4)


def test_seasonal_naive() -> None:
    x = torch.arange(10.0).view(1, 10, 1)
    assert SeasonalNaive(10, 7, period=3)(x).flatten().tolist() == [7, 8, 9, 7, 8, 9, 7]
    assert SeasonalNaive(10, 2, period=1)(x).flatten().tolist() == [9, 9]
    with pytest.raises(InputError, match="period 11 is not between 1 and lookback 10"):
        SeasonalNaive(10, 2, period=11)


def test_itransformer_reads_marks() -> None:
    network, x = small(ITransformer).eval(), torch.randn(2, 48, 3)
    marks = torch.randn(2, 48, 4)
    assert network(x, marks).shape == (2, 12, 3)
    assert not torch.allclose(network(x, marks), network(x))
    with pytest.raises(InputError, match="dim 18"):
        small(ITransformer, dim=18)


def official_state(**options: Any) -> dict[str, torch.Tensor]:
    """The official layout of a small model, written out: module prefix and position table included."""
    ours = small(Gateformer, **options).state_dict()
    official = {
        "patch_embedding.linear": "patch_embedding.value_embedding",
        "temporal_embedding.linear": "head.linear",
        "global_embedding": "project_embedding.value_embedding",
        "variate_embedding.linear_a": "gate_w1",
        "variate_embedding.linear_b": "gate_w2",
        "gated_output.linear_a": "gate_w3",
        "gated_output.linear_b": "gate_w4",
        "temporal_encoder": "enc_temporal",
        "variate_encoder": "enc_variate",
        "normalised_forecast": "projection",
    }
    state = {}
    for name, value in ours.items():
        prefix = next(prefix for prefix in official if name.startswith(f"{prefix}."))
        state[f"module.{official[prefix]}{name.removeprefix(prefix)}"] = value
    return {**state, "module.patch_embedding.position_embedding.pe": torch.zeros(1, 5000, 16)}


@pytest.mark.parametrize("options", [{}, {"depth": 3}, {"patch_len": 16, "stride": 8}, {"mlp_dim": 20, "horizon": 5}])
def test_convert_round_trip(options: dict[str, Any]) -> None:
    source = small(Gateformer, **options)
    given = {"stride": options["stride"]} if "stride" in options else {}
    arguments, state = convert(official_state(**options), n_heads=4, enc_in=3, **given)
    for name, value in arguments.items():
        assert getattr(source, name) == value
    target = Gateformer(**arguments)
    target.load_state_dict(state)
    x = torch.randn(2, 48, 3)
    torch.testing.assert_close(target.eval()(x), source.eval()(x))


def test_convert_infers_heads_and_passes_strangers_through() -> None:
    arguments, state = convert({**official_state(), "extra.weight": torch.zeros(1)})
    assert arguments["num_heads"] == 4
    assert arguments["stride"] == 8
    assert "extra.weight" in state


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"d_model": 32}, "dim is given as 32, but the checkpoint has 16"),
        ({"stride": 3}, "stride 3 does not give the 7 patches of 'head.linear.weight'"),
        ({"n_haeds": 4}, "unknown option 'n_haeds'"),
        ({"n_heads": 4, "num_heads": 2}, "num_heads is 2, but num_heads is 4"),
    ],
)
def test_convert_rejects(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(official_state(), **config)


def test_convert_names_a_missing_entry() -> None:
    state = official_state()
    del state["module.head.linear.weight"]
    with pytest.raises(InputError, match=r"no entry 'head.linear.weight'"):
        convert(state)
