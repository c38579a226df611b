"""A gated model through the commands: trained, measured again, used, saved by itself, and with a frozen host."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import toolkit
from toolkit.engine.run import Run

SMALL = ("model.dim=8", "model.depth=1", "model.mlp_dim=8", "model.num_heads=2", "lookback=24", "horizon=6")
SETTINGS = {
    "patchtst": (*SMALL, "model.patch_len=8"),
    "itransformer": (*SMALL, "gate.num_heads=2"),
    "dlinear": ("lookback=24", "horizon=6", "gate.dim=8"),
}


@pytest.fixture(params=SETTINGS)
def trained(request, run, make_csv, tmp_path) -> tuple[str, Path, Path]:
    """Host, its table, and the run folder of a gated model with the host alone as a baseline."""
    name, path = request.param, make_csv()
    words = ("--data", path, "--out", tmp_path / "run", "--max-steps", 3, f"baselines=[{name}]", *SETTINGS[name])
    code, out, err = run("train", "forecast", f"model={name}", "gate=true", *words)
    assert code == 0, err
    assert f"{name} + gate" in out
    return name, path, tmp_path / "run"


def test_from_training_to_prediction(trained, run, tmp_path):
    name, path, folder = trained
    metrics = Run(folder).metrics()
    assert metrics["model"] == f"{name} + gate"
    assert Run(folder / "baselines" / name).metrics()["model"] == name
    report = (folder / "report.md").read_text()
    assert "Gate openness" in report
    assert "| load0 |" in report

    code, out, err = run("evaluate", "forecast", "--run", folder, "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"] == pytest.approx(metrics["metrics"]["test"], rel=1e-6)

    code, _, err = run("predict", "forecast", "--run", folder, path, "-o", tmp_path / "next.csv")
    assert code == 0, err
    forecast = pd.read_csv(tmp_path / "next.csv")
    assert len(forecast) == 6
    assert np.isfinite(forecast[["load0", "load1", "load2"]].to_numpy()).all()

    model = toolkit.load(folder)
    scaling = json.loads((folder / "checkpoints/best/config.json").read_text())["data"]
    assert type(model).__name__ == "GatedForecaster"
    assert set(scaling["columns"]) == {"load0", "load1", "load2"}

    own = toolkit.save(model, tmp_path / "model")  # as a user saves it: no columns, no settings
    again = toolkit.evaluate("forecast", model=own, data=path)
    assert again["metrics"]["mse"] == pytest.approx(metrics["metrics"]["test"]["mse"], rel=1e-5)


def test_the_frozen_host_keeps_the_trained_weights(run, make_csv, tmp_path):
    words = ("--data", make_csv(), "--max-steps", 3, "baselines=[]", "model=patchtst", *SETTINGS["patchtst"])
    code, _, err = run("train", "forecast", *words, "--out", tmp_path / "host")
    assert code == 0, err
    frozen = ("gate.freeze=true", f"gate.weights={tmp_path / 'host'}")
    code, _, err = run("train", "forecast", *words, *frozen, "--out", tmp_path / "gated")
    assert code == 0, err
    host, gated = toolkit.load(tmp_path / "host").state_dict(), toolkit.load(tmp_path / "gated").host.state_dict()
    assert set(host) - set(gated) == {"projection.weight", "projection.bias"}
    assert all(torch.equal(value, host[name]) for name, value in gated.items())


@pytest.mark.parametrize(
    ("words", "mentioned"),
    [
        (("gate=true",), "cannot be put around 'gateformer'"),
        (("model=patchtst", "gate=maybe"), "gate is 'maybe'"),
        (("model=patchtst", "gate.weights=absent"), "absent"),
        (("model=patchtst", "gate.dim=6"), "dim 6 is not divisible by num_heads 4"),
        (("model=gated",), "what gate=true makes of another model"),
    ],
)
def test_bad_words_are_one_line_and_write_nothing(words, mentioned, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("train", "forecast", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert mentioned in err
    assert not list(tmp_path.iterdir())
