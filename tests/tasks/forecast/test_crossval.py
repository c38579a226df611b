"""Time-series cross-validation against explicit loops, and what it may not see."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import toolkit
from toolkit.engine.run import Run
from toolkit.errors import InputError
from toolkit.tasks.forecast.crossval import cutoff_borders, cutoffs
from toolkit.tasks.forecast.data import load_data

SMALL = {"lookback": 24, "horizon": 6, "max_steps": 8, "optim": {"lr": 0.01}}


@pytest.fixture
def frame(make_csv) -> pd.DataFrame:
    return pd.read_csv(make_csv(rows=240, columns=2), parse_dates=["date"])


def validate(frame, out, models=("dlinear",), **options):
    return toolkit.cross_validate("forecast", overrides=SMALL, data=frame, models=models, out=out, **options)


def of_model(done, model: str) -> np.ndarray:
    """Forecasts [window, series, step] in original units."""
    return done["forecasts"][model].to_numpy().reshape(-1, 2, SMALL["horizon"])


def test_cutoffs_end_with_the_table():
    assert cutoffs(100, horizon=10, n_windows=3) == [70, 80, 90]
    assert cutoffs(100, horizon=10, n_windows=3, step_size=4) == [82, 86, 90]
    assert cutoffs(11, horizon=10, n_windows=1) == [1]
    for n_windows, step_size in ((11, None), (0, None), (1, 0)):
        with pytest.raises(InputError):
            cutoffs(100, horizon=10, n_windows=n_windows, step_size=step_size)


def test_borders_leave_one_tested_window_and_nothing_behind_it(frame):
    assert cutoff_borders("x", 200, 240, 24, 6) == {"train": (0, 175), "val": (151, 200), "test": (176, 206)}
    assert cutoff_borders("x", 42, 240, 24, 6)["train"] == (0, 36)
    data = load_data(frame, lookback=24, horizon=6, cutoff=200)
    assert data.num_windows("test") == 1
    np.testing.assert_allclose(data.mean, frame.iloc[:175, 1:].mean())
    known, future, _ = data.batch("test", torch.tensor([0]))
    np.testing.assert_allclose(data.inverse(known)[0], frame.iloc[176:200, 1:], rtol=1e-5)
    np.testing.assert_allclose(data.inverse(future)[0], frame.iloc[200:206, 1:], rtol=1e-5)


@pytest.mark.parametrize("cutoff", [35, 235])
def test_a_cutoff_without_room_is_refused(frame, cutoff):
    with pytest.raises(InputError, match=r"It must lie between 36 and 234"):
        load_data(frame, lookback=24, horizon=6, cutoff=cutoff)


def test_seasonal_naive_equals_an_explicit_loop(frame, tmp_path):
    done = validate(frame, tmp_path / "cv", ["seasonal_naive"], n_windows=3, step_size=5)
    values = frame[["load0", "load1"]].to_numpy()
    errors = []
    for number, cutoff in enumerate([224, 229, 234]):
        expected, truth = values[cutoff - 24 : cutoff - 18], values[cutoff : cutoff + 6]
        np.testing.assert_allclose(of_model(done, "seasonal_naive")[number].T, expected, rtol=1e-5)
        held = done["forecasts"].iloc[12 * number : 12 * number + 12]
        assert held["unique_id"].tolist() == ["load0"] * 6 + ["load1"] * 6
        assert held["y"].tolist() == truth.T.ravel().tolist()
        assert held["ds"].tolist() == 2 * frame["date"][cutoff : cutoff + 6].tolist()
        assert set(held["cutoff"]) == {frame["date"][cutoff - 1]}
        train = values[: cutoff - cutoff // 8]
        scaled = (expected - truth) / train.std(0)
        metrics = done["rows"][number]["metrics"]
        assert metrics["mse"] == pytest.approx((scaled**2).mean(), rel=1e-5)
        assert metrics["mae"] == pytest.approx(np.abs(scaled).mean(), rel=1e-5)
        errors.append(np.abs(expected - truth))
    series = pd.read_csv(tmp_path / "cv/series.csv").set_index("unique_id")
    np.testing.assert_allclose(series.loc[["load0", "load1"], "mae"], np.mean(errors, axis=(0, 1)), rtol=1e-5)
    stored = pd.read_csv(tmp_path / "cv/forecasts.csv", parse_dates=["ds", "cutoff"])
    pd.testing.assert_frame_equal(stored, done["forecasts"], check_dtype=False)


def test_refit_trains_where_it_should(frame, tmp_path):
    trained = {}
    for refit, expected in ((0, [0]), (True, [0, 1, 2]), (2, [0, 2])):
        done = validate(frame, tmp_path / str(refit), n_windows=3, refit=refit)
        folders = [tmp_path / str(refit) / row["folder"] for row in done["rows"]]
        assert [number for number, folder in enumerate(folders) if (folder / "config.yaml").exists()] == expected
        trained[refit] = of_model(done, "dlinear")
        for number in expected:
            assert Run(folders[number]).config()["data"]["cutoff"] == 222 + 6 * number
    np.testing.assert_array_equal(trained[0][0], trained[True][0])
    np.testing.assert_array_equal(trained[2][2], trained[True][2])
    assert not np.array_equal(trained[0][1], trained[True][1])
    np.testing.assert_array_equal(trained[0][1], trained[2][1])


def test_without_refit_the_first_model_forecasts_every_window(frame, tmp_path):
    done = validate(frame, tmp_path / "cv", n_windows=3, refit=False)
    fitted = tmp_path / "cv" / done["rows"][0]["folder"]
    model, card = toolkit.load(fitted), json.loads((fitted / "checkpoints/best/config.json").read_text())
    mean, std = np.array(card["data"]["mean"]), np.array(card["data"]["std"])
    for number, cutoff in enumerate([222, 228, 234]):
        x = (frame[["load0", "load1"]].to_numpy()[cutoff - 24 : cutoff] - mean) / std
        with torch.inference_mode():
            forecast = model(torch.tensor(x, dtype=torch.float32)[None])[0].numpy() * std + mean
        np.testing.assert_allclose(of_model(done, "dlinear")[number].T, forecast, rtol=1e-4)


@pytest.mark.parametrize("refit", [0, 1])
def test_what_follows_a_cutoff_does_not_change_its_forecasts(frame, tmp_path, refit):
    before = validate(frame, tmp_path / "before", n_windows=3, refit=refit)
    changed = frame.copy()
    changed.loc[228:, ["load0", "load1"]] += 100.0
    after = validate(changed, tmp_path / "after", n_windows=3, refit=refit)
    bounds = ["dlinear", "dlinear-lo-90", "dlinear-hi-90"]
    known = before["forecasts"]["cutoff"] <= frame["date"][227]
    assert known.sum() == 2 * 12
    pd.testing.assert_frame_equal(before["forecasts"].loc[known, bounds], after["forecasts"].loc[known, bounds])
    assert (before["forecasts"].loc[~known, "dlinear"] != after["forecasts"].loc[~known, "dlinear"]).all()


def test_a_stopped_cross_validation_goes_on(frame, tmp_path, monkeypatch):
    from toolkit import api

    whole = validate(frame, tmp_path / "whole", ["seasonal_naive", "dlinear"], n_windows=2)
    train, calls = api.train, []

    def stops_at_the_third(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(api, "train", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        validate(frame, tmp_path / "cut", ["seasonal_naive", "dlinear"], n_windows=2)
    rest = validate(frame, tmp_path / "cut", ["seasonal_naive", "dlinear"], n_windows=2)
    assert len(calls) == 5, "two cells were finished, one was interrupted, two are made now"
    pd.testing.assert_frame_equal(rest["forecasts"], whole["forecasts"])
    with pytest.raises(InputError, match="was started with n_windows=2, now it is 3"):
        validate(frame, tmp_path / "cut", ["seasonal_naive", "dlinear"], n_windows=3)


def test_a_failed_fit_is_reported_and_the_others_run(frame, tmp_path, monkeypatch):
    from toolkit import api

    train = api.train

    def fails_for_dlinear(task, recipe, settings, **options):
        if settings["model"]["name"] == "dlinear":
            raise ArithmeticError("no convergence")
        return train(task, recipe, settings, **options)

    monkeypatch.setattr(api, "train", fails_for_dlinear)
    done = validate(frame, tmp_path / "cv", ["seasonal_naive", "dlinear"], n_windows=2, refit=0)
    assert (done["failed"], [row["status"] for row in done["rows"]]) == (2, ["done", "failed"] * 2)
    assert done["rows"][1]["error"] == "ArithmeticError: no convergence"
    assert "is not trained" in done["rows"][3]["error"]
    assert "dlinear" not in done["forecasts"]
    assert "Traceback" in (tmp_path / "cv/errors.txt").read_text()


def test_rows_without_stamps_and_one_scored_column(frame, tmp_path):
    overrides = {**SMALL, "data": {"target": "load1"}}
    numbered, out = frame.drop(columns="date"), tmp_path / "cv"
    done = toolkit.cross_validate(
        "forecast", overrides=overrides, data=numbered, models=["dlinear"], out=out, n_windows=2
    )
    forecasts = done["forecasts"]
    assert forecasts["unique_id"].unique().tolist() == ["load1"]
    assert forecasts["ds"].tolist() == list(range(228, 240))
    assert forecasts["cutoff"].unique().tolist() == [227, 233]
    assert forecasts["y"].tolist() == frame["load1"].tolist()[228:]


def test_models_that_forecast_different_things_are_refused(frame, tmp_path):
    frame.to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises(InputError, match=r"tpgn has mode=S, dlinear has mode=None"):
        toolkit.cross_validate(
            "forecast", data=tmp_path / "own.csv", models=["dlinear", "tpgn"], out=tmp_path / "cv", n_windows=2
        )
    assert not (tmp_path / "cv").exists()
