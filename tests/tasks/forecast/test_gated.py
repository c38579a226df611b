"""The gate around hosts: what it is made of, its limits, frozen hosts, and hosts that do not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import toolkit
from toolkit import registry
from toolkit.blocks.fusion import GatedFusion
from toolkit.blocks.normalization import instance_normalise
from toolkit.config import IN_MEMORY
from toolkit.engine.session import build
from toolkit.errors import InputError
from toolkit.tasks.forecast.config import ForecastConfig
from toolkit.tasks.forecast.dlinear import DLinear
from toolkit.tasks.forecast.gated import GatedForecaster, gate_forecaster, load_host
from toolkit.tasks.forecast.gateformer import Gateformer
from toolkit.tasks.forecast.itransformer import ITransformer
from toolkit.tasks.forecast.patchtst import PatchTST
from toolkit.tasks.forecast.task import Forecast

L, H = 48, 12
LOSSLESS = {"dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8, "dropout": 0.0}


class Recurrent(nn.Module):
    """A module from elsewhere that keeps the contract without a word of this project's: the last state of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 6, batch_first=True)

    def forward(self, series: Tensor) -> Tensor:
        return self.gru(series[..., None])[1][0]


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "patchtst": lambda: PatchTST(L, H, **LOSSLESS),
    "dlinear": lambda: DLinear(L, H),
    "itransformer": lambda: ITransformer(L, H, **LOSSLESS),
    "outside": Recurrent,
}


def gated(name: str, **options: Any) -> GatedForecaster:
    torch.manual_seed(0)
    return gate_forecaster(HOSTS[name](), L, H, **{"num_heads": 2, "dropout": 0.0, **options})


def force(gate: GatedFusion, openness: int) -> None:
    """Pass the first stream only (1), or the second only (0), whatever they are."""
    for linear in (gate.linear_a, gate.linear_b):
        nn.init.zeros_(linear.weight)
        nn.init.constant_(linear.bias, 100.0 if openness else -100.0)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize(("batch", "variates"), [(1, 1), (3, 7)])
def test_shapes_and_gradients(name: str, batch: int, variates: int) -> None:
    model = gated(name)
    forecast = model(torch.randn(batch, L, variates), torch.randn(batch, L, 4))
    assert forecast.shape == (batch, H, variates)
    forecast.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for part in model.children():
        gradients = [parameter.grad.abs().sum() for parameter in part.parameters() if parameter.grad is not None]
        assert not gradients or sum(gradients) > 0


@pytest.mark.parametrize("name", HOSTS)
def test_equivariant_to_the_order_of_variates(name: str) -> None:
    model, x, order = gated(name).eval(), torch.randn(2, L, 5), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model(x[..., order]), model(x)[..., order], rtol=1e-4, atol=1e-5)


class TemporalPath(nn.Module):
    def __init__(self, source: Gateformer) -> None:
        super().__init__()
        self.patch_embedding, self.temporal_encoder = source.patch_embedding, source.temporal_encoder

    def encode(self, series: Tensor) -> Tensor:
        return self.temporal_encoder(self.patch_embedding(series))


@pytest.mark.parametrize("takes", ["series", "patches", "variates"])
def test_around_its_own_encoders_it_is_gateformer(takes: str) -> None:
    source = Gateformer(L, H, **LOSSLESS)
    host = {
        "series": TemporalPath(source),
        "patches": source.temporal_encoder,
        "variates": source.variate_encoder,
    }[takes]
    host_dim = None if takes == "series" else 8
    model = gate_forecaster(host, L, H, takes=takes, host_dim=host_dim, dim=8, num_heads=2, dropout=0.0)
    ours, theirs = dict(model.named_children()), dict(source.named_children())
    for name in ours.keys() & theirs.keys() - {"temporal_embedding"}:
        ours[name].load_state_dict(theirs[name].state_dict())
    model.temporal_embedding.load_state_dict(source.temporal_embedding.linear.state_dict())
    x = torch.randn(2, L, 3)
    torch.testing.assert_close(model(x), source(x), rtol=1e-5, atol=1e-6)


def test_closed_to_the_global_embedding_patchtst_is_the_host() -> None:
    """With gate 1 on the temporal embedding and gate 2 on what comes from gate 1, only the host's path is left."""
    host = PatchTST(L, H, **LOSSLESS).eval()
    model = gate_forecaster(copy.deepcopy(host), dim=H, num_heads=2, dropout=0.0).eval()
    force(model.variate_embedding, 0)
    force(model.gated_output, 1)
    model.temporal_embedding.load_state_dict(host.projection.state_dict())
    nn.init.eye_(model.normalised_forecast.weight)
    nn.init.zeros_(model.normalised_forecast.bias)
    x = torch.randn(2, L, 3)
    torch.testing.assert_close(model(x), host(x), rtol=1e-5, atol=1e-5)


def test_closed_to_the_global_embedding_dlinear_is_the_host_on_normalised_series() -> None:
    host = DLinear(L, H)
    model = gate_forecaster(copy.deepcopy(host), dim=H, num_heads=2, dropout=0.0)
    force(model.variate_embedding, 0)
    force(model.gated_output, 1)
    for linear in (model.temporal_embedding, model.normalised_forecast):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    x = torch.randn(2, L, 3)
    series, mean, scale = instance_normalise(x.transpose(1, 2))
    expected = host(series.transpose(1, 2)) * scale.transpose(1, 2) + mean.transpose(1, 2)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("marked", [False, True])
def test_closed_to_the_patches_itransformer_is_the_host(marked: bool) -> None:
    """With gate 1 on the embedded variates and gate 2 on the attention over them, only the host's path is left."""
    host = ITransformer(L, H, **LOSSLESS)
    model = gate_forecaster(copy.deepcopy(host), num_heads=2, dropout=0.0)
    force(model.variate_embedding, 1)
    force(model.gated_output, 0)
    model.normalised_forecast.load_state_dict(host.projection.state_dict())
    x, marks = torch.randn(2, L, 3), torch.randn(2, L, 4) if marked else None
    torch.testing.assert_close(model(x, marks), host(x, marks), rtol=1e-5, atol=1e-5)
    assert model.uses_marks


@pytest.mark.parametrize("name", ["patchtst", "dlinear", "outside"])
def test_open_to_the_global_embedding_the_host_is_unheard(name: str) -> None:
    model = gated(name).eval()
    force(model.variate_embedding, 1)
    force(model.gated_output, 1)
    x = torch.randn(2, L, 3)
    series, mean, scale = instance_normalise(x.transpose(1, 2))
    expected = model.normalised_forecast(model.global_embedding(series)) * scale + mean
    torch.testing.assert_close(model(x), expected.transpose(1, 2), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for parameter in model.host.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(model(x), expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HOSTS)
def test_a_frozen_host_stays_as_it_is(name: str) -> None:
    model = gated(name, freeze=True, dropout=0.1)
    assert not model.host.training
    assert model.train().training
    assert not any(module.training for module in model.host.modules())
    before = copy.deepcopy(model.host.state_dict())  # running statistics too
    around = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(around, lr=0.1, weight_decay=0.1)
    x, marks = torch.randn(4, L, 3), torch.randn(4, L, 4)
    for _ in range(2):
        model(x, marks).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.host.state_dict().items())
    assert all(parameter.grad is None for parameter in model.host.parameters())
    assert all(parameter.grad is not None for parameter in around)
    assert model.variate_embedding.linear_a.weight.grad.abs().sum() > 0  # through a host of variates, too


def test_a_trained_host_learns() -> None:
    model = gated("patchtst")
    before = model.host.position.detach().clone()
    model(torch.randn(4, L, 3)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(model.host.position, before)


def test_the_hosts_own_head_is_dropped() -> None:
    for name in ("patchtst", "itransformer"):
        assert not hasattr(gated(name).host, "projection")


class Bad(nn.Module):
    def __init__(self, gives: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.gives = gives

    def forward(self, x: Tensor) -> Any:
        return self.gives(x)


@pytest.mark.parametrize(
    ("gives", "options", "message"),
    [
        (lambda x: x[:1], {}, r"Bad gives shape \(1, 48\) for series of shape \(3, 48\)\. A host that takes series"),
        (lambda x: x.sum(), {}, r"gives shape \(\) for series of shape \(3, 48\)"),
        (lambda x: x[:, None, None], {}, r"gives shape \(3, 1, 1, 48\)"),
        (lambda x: (x, x), {}, "gives a tuple, not a tensor"),
        (lambda x: x.view(5, 5), {}, r"fails on series of shape \(3, 48\): shape '\[5, 5\]' is invalid"),
        (lambda x: x[0], {"takes": "patches", "host_dim": 4}, r"shape \(7, 4\) for patches of shape \(3, 7, 4\)"),
        (lambda x: x[:, 1:], {"takes": "variates", "host_dim": 4}, r"\(2, 2, 4\) for variates of shape \(2, 3, 4\)"),
        (lambda x: x, {"takes": "variates"}, "Bad does not tell its channels. Pass host_dim"),
        (lambda x: x, {"takes": "variates", "host_dim": 4, "dim": 8}, "dim is 8, but the host's variate tokens have 4"),
        (lambda x: x, {"takes": "patches", "host_dim": 5}, "the host's tokens have 5 channels"),
        (lambda x: x, {"takes": "serie"}, "the host takes 'serie'. Did you mean 'series'"),
        (lambda x: x, {"dim": 6}, "dim 6 is not divisible by num_heads 4"),
        (lambda x: x, {"depth": 0}, "depth is 0"),
        (lambda x: x, {"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_hosts_that_do_not_fit_are_one_line(gives: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        gate_forecaster(Bad(gives), L, H, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["patchtst", "dlinear", "itransformer"])
def test_a_host_of_another_lookback_is_refused_and_left_as_it_is(name: str) -> None:
    host = HOSTS[name]()
    before = list(host.state_dict())
    with pytest.raises(InputError, match=f"the host {type(host).__name__} fails on"):
        gate_forecaster(host, lookback=L + 8, num_heads=2, freeze=True)
    assert list(host.state_dict()) == before
    assert all(parameter.requires_grad for parameter in host.parameters())
    assert all(module.training for module in host.modules())


def test_hosts_without_sizes_and_no_hosts() -> None:
    with pytest.raises(InputError, match=r"Recurrent does not tell its horizon. Pass horizon="):
        gate_forecaster(Recurrent(), L)
    with pytest.raises(InputError, match="the host is a str"):
        gate_forecaster("patchtst", L, H)  # type: ignore[arg-type]


def test_the_probe_leaves_the_host_and_the_generator_alone() -> None:
    host = PatchTST(L, H, **{**LOSSLESS, "dropout": 0.5})
    statistics = {key: value.clone() for key, value in host.state_dict().items() if "running" in key}
    model = gate_forecaster(host, num_heads=2)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(host.state_dict()[key], value) for key, value in statistics.items())
    state = torch.get_rng_state()
    model._num_features(7, 64)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["patchtst", "dlinear", "itransformer"])
@pytest.mark.parametrize("freeze", [False, True])
def test_saved_and_loaded(name: str, freeze: bool, tmp_path: Any) -> None:
    model, x, marks = gated(name, freeze=freeze).eval(), torch.randn(2, L, 3), torch.randn(2, L, 4)
    loaded = toolkit.load(toolkit.save(model, tmp_path / "model"))
    assert torch.equal(loaded(x, marks), model(x, marks))
    assert loaded.freeze is freeze


def test_an_outside_host_is_saved_once_it_is_registered(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = gated("outside").eval(), torch.randn(2, L, 3)
    with pytest.raises(InputError, match="Recurrent is not a registered model. Register it"):
        toolkit.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(registry.models, "_entries", dict(registry.models._all()))
    registry.models.add("recurrent", f"{__name__}:Recurrent", "forecast")
    assert torch.equal(toolkit.load(toolkit.save(model, tmp_path / "model"))(x), model(x))


def test_exports() -> None:
    model, x = gated("itransformer").eval(), torch.randn(2, L, 3)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


def test_weights_of_a_trained_host(tmp_path: Any) -> None:
    trained = HOSTS["patchtst"]()
    toolkit.save(trained, tmp_path / "host")
    host = HOSTS["patchtst"]()
    load_host(host, "patchtst", tmp_path / "host")
    assert torch.equal(host.position, trained.position)
    with pytest.raises(InputError, match="holds the model 'patchtst', not 'dlinear'. Name a run of dlinear"):
        load_host(HOSTS["dlinear"](), "dlinear", tmp_path / "host")
    with pytest.raises(InputError, match="wrong shape: position"):
        load_host(PatchTST(L, H, **{**LOSSLESS, "dim": 4}), "patchtst", tmp_path / "host")
    with pytest.raises(InputError, match="no model directory"):
        load_host(host, "patchtst", tmp_path / "absent")


def test_both_sides_of_a_comparison_start_from_the_same_host() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).standard_normal((300, 2)), columns=["a", "b"])
    settings = {"model": {"name": "patchtst", "dim": 8, "depth": 1, "num_heads": 2}, "data": {"path": IN_MEMORY}}
    settings |= {"lookback": L, "horizon": H}
    alone, around = (build(Forecast(ForecastConfig.build(settings, {"gate": gate}), frame)) for gate in (False, True))
    host = alone.model.state_dict()
    assert all(torch.equal(value, host[name]) for name, value in around.model.host.state_dict().items())
    assert around.summary()["model"] == "patchtst + gate"
    for (x, y, _), (other_x, other_y, _) in zip(
        (batch for batch, _ in alone.train_batches(0, 0, 0, 1)),
        (batch for batch, _ in around.train_batches(0, 0, 0, 1)),
        strict=True,
    ):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_float64_and_bfloat16() -> None:
    for name in HOSTS:
        model, x = gated(name).eval(), torch.randn(2, L, 3)
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(x) - expected).norm() < 0.05 * expected.norm()
        torch.testing.assert_close(model.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-5)


def test_settings() -> None:
    config = ForecastConfig.build({"model": "patchtst", "gate": True})
    assert config.gate is not None
    assert config.gate.arguments == {
        "dim": None, "depth": 1, "num_heads": 4, "mlp_dim": None, "dropout": 0.1, "freeze": False,
    }  # fmt: skip
    assert ForecastConfig.build(config.layer()) == config
    assert ForecastConfig.build({"model": "patchtst", "gate": {"dim": 32}}).gate is not None
    assert ForecastConfig.build({"model": "patchtst", "gate": {"dim": 32}}, {"gate": False}).gate is None
    assert "patchtst" in ForecastConfig.build({"model": "patchtst", "gate": True, "baselines": ["patchtst"]}).baselines


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "gated"}, "'gated' is what gate=true makes of another model"),
        ({"gate": True}, "gate=true cannot be put around 'gateformer'"),
        ({"model": "seasonal_naive", "gate": True}, "cannot be put around 'seasonal_naive'"),
        ({"model": "patchtst", "gate": "yes"}, "gate is 'yes'. Write gate=true"),
        ({"model": "patchtst", "gate": {"dimm": 3}}, "unknown key 'gate.dimm'.*Did you mean 'gate.dim'"),
        ({"model": "patchtst", "gate": {"freeze": True}}, "would freeze random weights. Set gate.weights"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ForecastConfig.build(settings)
