"""``toolkit export`` from a trained forecaster to a file that other programs run."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

import toolkit

SHORT = ("lookback=48", "horizon=12", "baselines=[]", "--max-steps", 2)


@pytest.fixture
def trained(run, make_csv, tmp_path):
    """A run of a model that reads the calendar."""
    folder = tmp_path / "run"
    words = ("--data", make_csv(), "model=itransformer", "model.dim=16", "model.depth=1", *SHORT, "--out", folder)
    code, _, err = run("train", "forecast", *words)
    assert code == 0, err
    return folder


@pytest.mark.slow
def test_a_forecaster_as_onnx(run, trained, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra 'export'")
    import onnxruntime

    code, out, err = run("export", "--run", trained, "-o", tmp_path / "forecaster.onnx")
    assert code == 0, err
    assert f"{tmp_path / 'forecaster.onnx'}: itransformer, past [batch, 48, variates], marks [batch, 48, 4] -> " in out
    session = onnxruntime.InferenceSession(tmp_path / "forecaster.onnx", providers=["CPUExecutionProvider"])
    past, marks = torch.randn(4, 48, 3), torch.rand(4, 48, 4) - 0.5
    (found,) = session.run(["forecast"], {"past": past.numpy(), "marks": marks.numpy()})
    with torch.no_grad():
        expected = toolkit.load(trained)(past, marks).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    assert card["data"]["columns"] == ["load0", "load1", "load2"]


def test_a_forecaster_as_a_program(run, trained, tmp_path):
    words = ("export", "--run", trained, "--format", "torch-export", "-o", tmp_path, "--json")
    code, out, err = run(*words)
    assert code == 0, err
    written = json.loads(out)
    assert written["file"] == str(tmp_path / "itransformer.pt2")
    past, marks = torch.randn(5, 48, 3), torch.rand(5, 48, 4) - 0.5
    with torch.no_grad():
        found = torch.export.load(written["file"]).module()(past, marks)
        torch.testing.assert_close(found, toolkit.load(trained)(past, marks), rtol=1e-4, atol=1e-5)


def test_one_line_per_mistake(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("export", "--model", "vig_tinny", "--format", "torch-export")
    assert (code, out) == (2, "")
    assert err.startswith("error: no model directory at vig_tinny, nor does timm know a model of that name. Did you")
    code, _, err = run("export", "--model", tmp_path, "--format", "torch-export")
    assert (code, err.count("\n")) == (2, 1)
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = run("export", "--model", "vig_tiny")
    assert code == 4
    assert err == 'error: Exporting to ONNX needs onnx. Install it with: pip install "gated-toolkit[export]"\n'
    assert not list(tmp_path.iterdir())
