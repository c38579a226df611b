"""TPGN: its definition, sizes, checks, protocol and recipes, and a run from a table to a forecast."""

from __future__ import annotations

import inspect
import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import toolkit
from toolkit import registry
from toolkit.api import resolve
from toolkit.engine.run import Run
from toolkit.errors import InputError
from toolkit.tasks.forecast.config import ForecastConfig
from toolkit.tasks.forecast.task import Forecast
from toolkit.tasks.forecast.tpgn import TPGN

HORIZONS = (168, 336, 720, 1440)
SETS = ("electricity", "traffic", "etth1", "etth2", "weather")


def definition(model: TPGN, x: Tensor, marks: Tensor | None) -> Tensor:
    """The paper's equations for one channel, phase and period after the other."""
    q, rows = model.period_len, model.lookback // model.period_len
    mean, scale = x.mean(1, keepdim=True), torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    x = (x - mean) / scale if model.norm else x
    gate, forecast = model.pgn.gate_input, []
    for k in range(model.num_variates):
        cells = x[:, :, k : k + 1] if marks is None else torch.cat((x[:, :, k : k + 1], marks), dim=-1)
        cells = cells.unflatten(1, (rows, q))  # [B, R, q, F]
        patches = [
            cells[:, r].flatten(1) @ model.row_encoder.weight[k] + model.row_encoder.bias[k] for r in range(rows)
        ]
        short = torch.cat(patches, dim=1) @ model.column_encoder.weight[k] + model.column_encoder.bias[k]
        phases = []
        for j in range(q):
            hidden = []
            for r in range(rows):
                history = model.pgn.history.bias[k, 0]
                for lag in range(1, r + 1):
                    history = history + cells[:, r - lag, j] @ model.pgn.history.weight[k, lag - 1]
                seen = cells[:, r, j] @ gate.weight[k] + history @ model.pgn.gate_history.weight[k] + gate.bias[k]
                openness, candidate = seen[:, : model.dim].sigmoid(), seen[:, model.dim :].tanh()
                hidden.append(openness * history + (1 - openness) * candidate)
            long = torch.cat(hidden, dim=1) @ model.row_aggregation.weight[k] + model.row_aggregation.bias[k]
            output = torch.cat((model.output_short.weight[k], model.output_long.weight[k]))
            phases.append(torch.cat((short, long), dim=1) @ output + model.output_short.bias[k])
        forecast.append(torch.stack(phases, dim=2).flatten(1))  # period by period
    y = torch.stack(forecast, dim=2)
    return y * scale + mean if model.norm else y


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((48, 24, 1, 4), {"period_len": 12, "dim": 2, "norm": True}),
        ((48, 24, 3, 3), {"period_len": 12, "dim": 4}),
        ((20, 30, 2, 0), {"period_len": 5, "dim": 3, "norm": True}),
        ((6, 4, 2, 5), {"period_len": 1, "dim": 3}),
    ],
)
def test_outputs_and_gradients(sizes, options) -> None:
    model = TPGN(*sizes, **options).double()
    lookback, horizon, variates, num_marks = sizes
    x = torch.randn(3, lookback, variates, dtype=torch.float64, requires_grad=True)
    marks = torch.rand(3, lookback, num_marks, dtype=torch.float64) - 0.5 if num_marks else None
    found, expected = model(x, marks), definition(model, x, marks)
    assert found.shape == (3, horizon, variates)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    upstream, leaves = torch.randn_like(found), [*model.parameters()]
    if not model.norm:  # ``instance_normalise`` takes mean and deviation as constants
        leaves.append(x)
    for one, other in zip(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("dim", "horizon", "count"),
    [
        *((2, 168, 431), (8, 168, 2_471), (8, 1440, 3_372), (32, 168, 22_151), (32, 1440, 25_596), (4, 168, 983)),
        *((128, 168, 285_191), (256, 1440, 1_121_852)),
    ],
)
def test_parameter_counts_of_the_official_models(dim, horizon, count) -> None:
    model = TPGN(168, horizon, 1, 4, dim=dim)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_kept_arguments() -> None:
    model = TPGN(24, 12, 2, 3, period_len=6, dim=4, norm=True)
    again = TPGN(**{name: getattr(model, name) for name in inspect.signature(TPGN).parameters})
    again.load_state_dict(model.state_dict())
    x, marks = torch.randn(2, 24, 2), torch.rand(2, 24, 3)
    assert torch.equal(again(x, marks), model(x, marks))


def test_channels_do_not_see_each_other() -> None:
    model, x, marks = TPGN(24, 12, 3, 3, period_len=6, dim=4), torch.randn(2, 24, 3), torch.rand(2, 24, 3)
    before = model(x, marks)
    x[..., 1] += 1
    changed = (model(x, marks) - before).abs().amax((0, 1)) > 1e-6
    assert changed.tolist() == [False, True, False]


def test_norm_follows_shift_and_scale() -> None:
    model, x, marks = TPGN(24, 12, 2, 3, period_len=6, dim=4, norm=True), torch.randn(2, 24, 2), torch.rand(2, 24, 3)
    torch.testing.assert_close(model(5 * x - 3, marks), 5 * model(x, marks) - 3, rtol=1e-3, atol=1e-3)


def test_exports_and_rounds() -> None:
    model, x, marks = (
        TPGN(24, 12, 2, 3, period_len=6, dim=4, norm=True).eval(),
        torch.randn(2, 24, 2),
        torch.rand(2, 24, 3),
    )
    exported = torch.export.export(model, (x, marks)).module()
    torch.testing.assert_close(exported(x, marks), model(x, marks))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x, marks)
    assert (rounded - model(x, marks)).norm() < 0.05 * model(x, marks).norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookback": 100}, "lookback 100 is not a multiple of period_len 24. Choose lookback=96 or 120"),
        ({"horizon": 100}, "horizon 100 is not a multiple of period_len 24. Choose horizon=96 or 120, or another"),
        ({"horizon": 7}, "horizon 7 is not a multiple of period_len 24. Choose horizon=24, or another model"),
        ({"lookback": 24}, "lookback 24 is shorter than 2 periods of 24. Choose lookback=48"),
        ({"num_marks": -1}, "num_marks is -1"),
        ({"num_variates": 0}, "num_variates is 0. It must be at least 1"),
        ({"period_len": 0}, "period_len is 0"),
        ({"dim": 0}, "dim is 0"),
    ],
)
def test_rejects_sizes(options, message) -> None:
    with pytest.raises(InputError, match=message):
        TPGN(**{"lookback": 96, "horizon": 48, "num_variates": 1, "num_marks": 4, **options})


def test_rejects_inputs() -> None:
    model, x, marks = TPGN(24, 12, 2, 3, period_len=6), torch.randn(2, 24, 2), torch.rand(2, 24, 3)
    with pytest.raises(InputError, match="the input has 24 steps of 1 variates, the model takes 24 of 2"):
        model(x[..., :1], marks)
    with pytest.raises(InputError, match="the input has 4 calendar marks, the model takes 3"):
        model(x, torch.rand(2, 24, 4))
    with pytest.raises(InputError, match="the input has 0 calendar marks, the model takes 3. Give a table with time"):
        model(x)


def test_a_recipe_for_every_published_row() -> None:
    assert len(registry.recipes.names("tpgn_*")) == len(SETS) * len(HORIZONS)
    figures = set()
    for name in SETS:
        for horizon in HORIZONS:
            config = resolve("forecast", f"tpgn_{name}_{horizon}", {})
            assert isinstance(config, ForecastConfig)
            assert (config.data.name, config.lookback, config.horizon, config.mode) == (name, 168, horizon, "S")
            assert (config.data.split, config.optim.schedule, config.protocol) == ("ratio_6_2_2", "decay", "standard")
            assert (config.batch_size, config.epochs, config.patience, config.optim.lr) == (32, 25, 5, 1e-3)
            assert config.data.calendar == ("h" if name == "weather" else None)
            assert set(config.published.metrics) == {"mse", "mae"}
            figures.add(tuple(config.published.metrics.values()))
    assert len(figures) == len(SETS) * len(HORIZONS)


SMALL = {"model": {"name": "tpgn", "dim": 2, "period_len": 12}, "lookback": 48, "horizon": 12, "baselines": []}


def own(make_csv, **settings) -> Forecast:
    task = Forecast(ForecastConfig.build(SMALL, {"data": {"path": make_csv()}}, settings))
    task.build()
    return task


def test_one_column_with_the_marks_of_its_step(make_csv) -> None:
    task = own(make_csv, mode="S", data={"target": "load1"})
    assert (task.model.num_variates, task.model.num_marks) == (1, 4)
    assert own(make_csv).model.num_variates == 3
    assert own(make_csv, data={"calendar": "d"}).model.num_marks == 3
    assert own(lambda: make_csv(change=lambda frame: frame.drop(columns="date"))).model.num_marks == 0


def test_drop_last_keeps_whole_batches_only(make_csv) -> None:
    kept, whole = own(make_csv, protocol="drop_last"), own(make_csv)
    for split in ("train", "val", "test"):
        count = whole.data.num_windows(split)
        assert count % 32
        assert whole.summary()["windows"][split] == count
        assert kept.summary()["windows"][split] == count - count % 32
    for task, least, most in ((kept, 32, 32), (whole, 1, 31)):
        batches = list(task.train_batches(0, 0, 0, 1))
        assert len(batches) == task.steps_per_epoch()
        assert least <= len(batches[-1][0][0]) <= most
        assert len(list(task.train_batches(0, 2, 0, 1))) == len(batches) - 2
        for split in ("val", "test"):
            found = sum(len(x) for x, _, _ in task.eval_batches(split, 0, 1))
            assert found == task.summary()["windows"][split]


def test_a_protocol_that_drops_everything_is_refused(make_csv) -> None:
    with pytest.raises(
        InputError, match=r"protocol=drop_last drops all \d+ windows of the val split: a batch takes 200"
    ):
        own(make_csv, protocol="drop_last", batch_size=200)


def test_windows_on_etth1(real_data) -> None:
    path = real_data / "ett" / "ETTh1.csv"
    for protocol, windows in (("standard", 3317), ("drop_last", 3296)):
        overrides = {"data": {"path": str(path)}, "protocol": protocol}
        task = Forecast(resolve("forecast", "tpgn_etth1_168", overrides))
        task.build()
        summary = task.summary()
        assert (summary["windows"]["test"], summary["parameters"], summary["variates"]) == (windows, 431, 1)
        assert task.steps_per_epoch() == (317 if protocol == "standard" else 316)


def test_from_a_table_to_a_forecast(make_csv, tmp_path) -> None:
    """Training beats the mean of the window, the report says the protocol, and one column comes out in its units."""
    settings = {**SMALL, "mode": "S", "protocol": "drop_last", "epochs": 3, "optim": {"lr": 1e-2, "schedule": "decay"}}
    settings["data"] = {"target": "load1"}
    path = make_csv(rows=900)
    toolkit.train("forecast", data=path, overrides=settings, out=tmp_path / "run")
    run = Run(tmp_path / "run")
    test = run.metrics()["metrics"]["test"]
    assert test["windows"] % 32 == 0
    assert test["mse"] < 0.3
    assert "Protocol: **drop_last**" in (run.folder / "report.md").read_text()
    assert [row["lr"] for row in run.history() if "lr" in row][-1] == pytest.approx(1e-2 * 0.9)

    forecast = toolkit.predict("forecast", path, run=run.folder)
    assert list(forecast.columns) == ["date", "load1", "load1_lower", "load1_upper"]
    hours = torch.arange(900, 912)
    truth = 5 * torch.sin(2 * math.pi * hours / 24 + 1) + 20
    assert F.l1_loss(torch.tensor(forecast["load1"].to_numpy()), truth.double()) < 2
    assert pd.Timestamp(forecast["date"].iloc[0]) == pd.Timestamp("2024-01-01") + pd.Timedelta(hours=900)
