"""Suites, cross-validation and long tables through the command line, on a small table of the user's own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import toolkit
from toolkit.engine.run import Run

ROOT = Path(__file__).parent.parent.parent
SUITE = """
title: Two models on one table
settings: {lookback: 24, baselines: [], max_steps: 6, optim: {lr: 1.0e-2}}
horizons: [6]
data: {own: {path: own.csv}}
models:
  seasonal_naive:
  dlinear:
quoted:
  source: "a book, page 7"
  figures: {dlinear: {own: {6: [0.5, 0.4]}}}
"""


@pytest.fixture
def suite_file(make_csv) -> Path:
    path = make_csv(rows=400, columns=2).with_name("mine.yaml")
    path.write_text(SUITE)
    return path


def test_a_suite_becomes_one_table_in_four_forms(suite_file, run, tmp_path):
    out = tmp_path / "suite"
    words = ("evaluate", "forecast", "--suite", suite_file, "--seed", 1, "--seed", 2, "--out", out, "--quiet")
    code, printed, err = run(*words)
    assert (code, err) == (0, "")
    assert "±" in printed
    measured = Run(out / "own-6-dlinear").metrics()["metrics"]["test"]["mse"]
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["labels"]["model"] for row in rows] == ["seasonal_naive", "dlinear"]
    assert rows[1]["metrics"]["mse"] == measured
    assert (rows[1]["quoted"], rows[1]["source"]) == ({"mse": 0.5, "mae": 0.4}, "a book, page 7")
    table = pd.read_csv(out / "results.csv").set_index("model")
    assert table.loc["dlinear", "mse"] == pytest.approx(measured["mean"])
    assert table.loc["dlinear", "mse_std"] == pytest.approx(measured["std"])
    assert table.loc["dlinear", "quoted_mse"] == 0.5
    assert np.isnan(table.loc["seasonal_naive", "quoted_mse"])
    text = (out / "results.md").read_text()
    assert f"{measured['mean'] - 0.5:+.4f}" in text
    assert "[1] a book, page 7" in text
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    again = run(*words)
    assert again[0] == 0
    assert again[1] == printed
    assert Run(out / "own-6-dlinear").metrics()["metrics"]["test"]["mse"] == measured


def test_models_are_filtered_and_the_rest_added_later(suite_file, run, tmp_path):
    words = ("evaluate", "forecast", "--suite", suite_file, "--out", tmp_path / "suite", "--quiet", "--json")
    code, out, _ = run(*words, "--models", "dlinear", "--horizons", 6)
    assert code == 0
    assert [row["labels"]["model"] for row in json.loads(out)["rows"]] == ["dlinear"]
    trained = (tmp_path / "suite/own-6-dlinear/metrics.json").stat().st_mtime_ns
    code, out, _ = run(*words, "--models", "seasonal_naive")
    assert [row["status"] for row in json.loads(out)["rows"]] == ["done", "done"]
    assert (tmp_path / "suite/own-6-dlinear/metrics.json").stat().st_mtime_ns == trained


def test_a_failed_cell_is_reported_and_the_others_run(suite_file, run, tmp_path):
    suite_file.write_text(SUITE.replace("data: {own:", "data: {absent: {path: absent.csv}, own:"))
    out = tmp_path / "suite"
    code, printed, err = run("evaluate", "forecast", "--suite", suite_file, "--out", out, "--quiet")
    assert code == 1
    assert err.count("\n") == 1
    assert "2 of 4 cells failed" in err
    assert printed.splitlines()[1].split() == ["absent", "6", "failed", "failed"]
    text = (out / "results.md").read_text()
    assert "- absent, 6, dlinear:" in text
    assert "absent.csv does not exist" in text
    assert pd.read_csv(out / "results.csv")["status"].tolist() == ["failed", "failed", "done", "done"]
    (suite_file.with_name("absent.csv")).write_bytes(suite_file.with_name("own.csv").read_bytes())
    assert run("evaluate", "forecast", "--suite", suite_file, "--out", out, "--quiet")[0] == 0
    table = pd.read_csv(out / "results.csv")
    assert table["status"].tolist() == ["done"] * 4
    assert table["mse"][:2].tolist() == table["mse"][2:].tolist()


@pytest.mark.slow
def test_kill_and_run_again(suite_file, tmp_path):
    """The finished cell stays, the running one goes on from its checkpoint to the unbroken losses."""
    suite_file.write_text(SUITE.replace("max_steps: 6, ", "").replace("{lookback: 24", "{lookback: 24, epochs: 8"))
    settings = ("batch_size=2", "log_every=1", "checkpoint_minutes=0.001")
    words = [sys.executable, "-m", "toolkit.cli", "evaluate", "forecast", "--suite", suite_file, *settings, "--out"]
    process = subprocess.Popen([*words, tmp_path / "cut"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    cell, until = tmp_path / "cut/own-6-dlinear", time.monotonic() + 120
    while not (cell / "checkpoints/last/state.pt").exists():
        assert time.monotonic() < until
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cell / "metrics.json").exists()
    first = tmp_path / "cut/own-6-seasonal_naive/metrics.json"
    stamp = first.stat().st_mtime_ns
    done = subprocess.run([*words, tmp_path / "cut"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continuing after step" in done.stderr
    assert first.stat().st_mtime_ns == stamp
    changed = {"batch_size": 2, "log_every": 1, "checkpoint_minutes": 0.001}
    toolkit.evaluate_suite("forecast", suite_file, overrides=changed, out=tmp_path / "whole")
    broken, whole = (
        [(row["step"], row.get("loss"), row.get("mse")) for row in Run(folder / "own-6-dlinear").history()]
        for folder in (tmp_path / "cut", tmp_path / "whole")
    )
    assert broken == whole
    assert pd.read_csv(tmp_path / "cut/results.csv")["mse"].equals(pd.read_csv(tmp_path / "whole/results.csv")["mse"])


def test_a_cell_that_died_before_its_settings_were_written_begins_anew(suite_file, tmp_path):
    toolkit.evaluate_suite("forecast", suite_file, only={"model": ["seasonal_naive"]}, out=tmp_path / "suite")
    for name in (".", "s1"):
        folder = tmp_path / "suite/own-6-dlinear" / name
        folder.mkdir()
        (folder / "command.txt").write_text("toolkit evaluate\n")
        (folder / ".tmp-config.yaml").write_text("name: d")
    (tmp_path / "suite/.tmp-own-6-dlinear-probe").mkdir()
    assert toolkit.evaluate_suite("forecast", suite_file, out=tmp_path / "suite")["failed"] == 0
    assert not list((tmp_path / "suite").rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("words", "mentioned"),
    [
        (("--suite", "et"), "unknown suite 'et'. Did you mean 'ett'"),
        (("--suite", "absent.yaml"), "absent.yaml"),
        (("--suite", "ett", "--models", "dlinea"), "no model 'dlinea'. Did you mean 'dlinear'"),
        (("--suite", "ett", "--horizons", "97"), "no horizon '97'"),
        (("--suite", "ett", "horizon=48"), "'horizon' is what the cells of a suite differ in"),
        (("--suite", "ett", "optim.lrr=1"), "optim.lr"),
        (("--suite", "ett", "--data", "etth1"), "--datasets"),
        (("--suite", "ett", "--data", "absent/"), "there is no folder absent"),
        (("--suite", "ett", "--n-windows", 2), "--n-windows does not fit here"),
        (("--suite", "ett", "--run", "runs"), "train their own"),
        (("--models", "dlinear"), "--models does not fit here. It needs --suite NAME"),
        (("--n-windows", 0), "n_windows is 0"),
        (("--n-windows", 2, "--refit", -1), "refit is -1"),
        (("--n-windows", 2, "--step-size", 0), "step_size is 0"),
        (("--n-windows", 9999), "more than the table's"),
        (("--n-windows", 2, "seeds=[1,2]"), "one seed"),
        (("--n-windows", 2, "--models", "dlinea"), "Did you mean 'dlinear'"),
    ],
)
def test_bad_words_are_one_line_and_write_nothing(words, mentioned, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("evaluate", "forecast", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert mentioned in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "mentioned"),
    [
        (("title:", "titel: my\ntitle:"), "mine.yaml: unknown key 'titel'"),
        (("  dlinear:\n", "  dlinar:\n"), "'dlinar'"),
        (("[0.5, 0.4]", "[0.5]"), "mine.yaml"),
        (("{path: own.csv}", "{path: own.csv, models: [other]}"), "data.own.models names 'other'"),
        (("lookback: 24", "lookbak: 24"), "lookback"),
        (("{dlinear: {own", "{dlinear: {onw"), "quoted.figures has 'onw'"),
        (("horizons: [6]", "horizons: []"), "the suite has no cells"),
        (("data: {own:", 'data: {"a b": {path: own.csv}, a_b: {path: own.csv}, own:'), "share the folder a_b-6"),
    ],
)
def test_a_bad_suite_file_is_one_line(change, mentioned, suite_file, run, tmp_path):
    suite_file.write_text(SUITE.replace(*change))
    code, _, err = run("evaluate", "forecast", "--suite", suite_file, "--out", tmp_path / "suite")
    assert (code, err.count("\n")) == (2, 1), err
    assert mentioned in err
    assert not (tmp_path / "suite").exists()


def test_a_suite_folder_belongs_to_one_suite_of_one_process(suite_file, run, tmp_path):
    words = ("evaluate", "forecast", "--suite", suite_file, "--out", tmp_path / "suite", "--models", "seasonal_naive")
    assert run(*words, "--quiet")[0] == 0
    code, _, err = run(*words, "max_steps=7")
    assert (code, err.count("\n")) == (2, 1)
    assert "was started with settings=" in err
    from filelock import FileLock

    with FileLock(tmp_path / "suite/.lock"):
        code, _, err = run(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "in use by another process" in err


def test_the_bundled_suites_have_cells_with_their_own_recipes():
    from toolkit.api import resolve
    from toolkit.tasks.forecast.suite import SUITES, load_suite

    for path in sorted(SUITES.glob("*.yaml")):
        suite = load_suite(path.stem)
        assert len({cell.name for cell in suite.cells}) == len(suite.cells)
        for cell in suite.cells:
            config = resolve("forecast", cell.recipe, cell.settings)
            labels = {"data": config.data.name, "horizon": config.horizon, "model": config.model.name}
            assert labels == cell.labels
            assert (config.lookback, config.data.split) == (36 if config.data.name == "ili" else 96, None)
            assert (config.mode or "M", config.baselines, config.protocol) == ("M", [], "standard")
    ett = {cell.name: cell for cell in load_suite("ett").cells}
    assert ett["etth1-192-gateformer"].recipe == "gateformer_etth1_192"
    assert ett["etth1-192-gateformer"].source == "measured with the official code, seed 2021"
    assert ett["etth2-720-dlinear"].quoted == {"mse": 0.831, "mae": 0.657}


def test_a_data_folder_serves_one_call(real_data, tmp_path, run, monkeypatch):
    words = ("evaluate", "forecast", "--suite", "ett", "--datasets", "etth1", "--horizons", 96, "--quiet", "--json")
    words = (*words, "--models", "seasonal_naive", "--out", tmp_path / "suite")
    code, out, _ = run(*words, "--data", real_data)
    assert code == 0
    assert json.loads(out)["rows"][0]["metrics"]["mse"] == pytest.approx(0.5122, abs=1e-4)
    monkeypatch.chdir(tmp_path)
    assert run(*words[:-2], "--out", "other")[0] == 1, "no folder, no data"


def test_a_long_table_is_cross_validated(make_csv, run, tmp_path):
    wide = pd.read_csv(make_csv(rows=200, columns=2))
    long = wide.melt("date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})
    long.to_csv(tmp_path / "long.csv", index=False)
    small = ("lookback=24", "horizon=6", "max_steps=2", "--quiet", "--json", "--out", tmp_path / "cv")
    words = ("--n-windows", 2, "--step-size", 3, "--refit", 0, "--models", "dlinear,seasonal_naive", *small)
    code, out, err = run("evaluate", "forecast", "--data", tmp_path / "long.csv", *words)
    assert (code, err) == (0, "")
    done = json.loads(out)
    assert [row["labels"] for row in done["rows"][:2]] == [
        {"cutoff": "2024-01-08 22:00:00", "model": model} for model in ("dlinear", "seasonal_naive")
    ]
    assert "trained before the first cutoff" in (tmp_path / "cv/results.md").read_text()
    forecasts = pd.read_csv(tmp_path / "cv/forecasts.csv")
    truth = forecasts.merge(long, on=["unique_id", "ds"], suffixes=("", "_own"))
    assert len(truth) == len(forecasts) == 2 * 2 * 6
    np.testing.assert_allclose(truth["y"], truth["y_own"])
    for bound in ("dlinear", "dlinear-lo-90", "dlinear-hi-90", "seasonal_naive"):
        assert forecasts[bound].notna().all()


def test_long_table_to_long_forecast(make_csv, run, tmp_path):
    wide = pd.read_csv(make_csv(rows=300, columns=2), parse_dates=["date"])
    long = wide.melt("date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})
    long.to_csv(tmp_path / "long.csv", index=False)
    small = ("model=dlinear", "lookback=24", "horizon=6", "baselines=[]", "--max-steps", 3, "--quiet")
    for name in ("long", "own"):
        words = ("train", "forecast", "--data", tmp_path / f"{name}.csv", *small, "--out", tmp_path / name)
        assert run(*words)[0] == 0
    assert Run(tmp_path / "long").metrics()["metrics"] == Run(tmp_path / "own").metrics()["metrics"]
    output = tmp_path / "next.csv"
    code, _, err = run("predict", "forecast", "--run", tmp_path / "long", tmp_path / "long.csv", "-o", output)
    assert code == 0, err
    assert output.with_suffix(".png").is_file()
    forecast = pd.read_csv(output, parse_dates=["ds"])
    assert list(forecast.columns) == ["unique_id", "ds", "dlinear", "dlinear-lo-90", "dlinear-hi-90"]
    plain = toolkit.predict("forecast", tmp_path / "own.csv", run=tmp_path / "long")
    for series, held in forecast.groupby("unique_id"):
        assert list(held["ds"]) == list(plain["date"])
        for mine, theirs in (("dlinear", series), ("dlinear-lo-90", f"{series}_lower")):
            np.testing.assert_allclose(held[mine], plain[theirs], rtol=1e-12)
