"""Exported files against the models that they were made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import toolkit
import toolkit.tasks.classify
from toolkit import exports
from toolkit.engine import checkpoint
from toolkit.errors import InputError, MissingPackageError, ToolkitError

ROOT = Path(__file__).parent.parent
FORMATS = ("onnx", "torch-export")
SMALL = {  # each family in a few layers; filters of HorNet's are those of 64 pixels
    "vig_tiny": {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "vig_h_tiny": {"dims": [16, 32], "depths": [1, 1], "num_heads": [1, 2]},
    "hornet_tiny_7x7": {"dims": [16, 32], "depths": [1, 1], "orders": [2, 3]},
    "hornet_tiny_gf": {"dims": [16, 32], "depths": [1, 1], "orders": [2, 3], "filter_sizes": [[16, 9], [8, 5]]},
    "test_vit": {"img_size": 64},
}


def need_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra 'export'")


@pytest.fixture(params=FORMATS)
def form(request) -> str:
    if request.param == "onnx":
        need_onnx()
    return request.param


def directory(folder: Path, name: str, **arguments) -> Path:
    """A model directory of a classifier of 64 pixels and five classes, none of whose parts is without effect."""
    arguments = {"num_classes": 5, **arguments}
    model = timm.create_model(name, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    seen = {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "crop_mode": "center"}
    card = {
        "task": "classify",
        "architecture": f"timm/{name}",
        "arguments": arguments,
        "data": {"classes": list("abcde"), "preprocessing": seen | {"interpolation": "bicubic"}},
        "config": {"model": {"name": name}, "data": {"name": None}},
    }
    checkpoint.save(folder, model.state_dict(), card)
    return folder


def read(file: str, form: str):
    """What the file computes, and the card in it."""
    if form == "torch-export":
        extra = {"card": ""}
        module = torch.export.load(file, extra_files=extra).module()
        return (lambda x: module(x)), json.loads(extra["card"])
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    return (lambda x: torch.from_numpy(session.run(["logits"], {"image": x.numpy()})[0])), card


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_file_gives_the_results_of_its_model(name, form, tmp_path):
    folder = directory(tmp_path / "model", name, **SMALL[name])
    written = toolkit.export(model=folder, format=form, output=tmp_path)
    assert written["error"] <= 1e-4
    fixed = name == "test_vit"
    assert written["inputs"] == {"image": ["batch", 3, *((64, 64) if fixed else ("height", "width"))]}
    assert written["notes"] == (["height and width fixed"] if fixed else [])

    model, (run, card) = toolkit.load(folder), read(written["file"], form)
    assert card["data"]["classes"] == list("abcde")
    for shape in ((1, 3, 64, 64), (5, 3, 64, 64), (2, 3, 96, 72), (1, 3, 50, 130)):
        if fixed and shape[2:] != (64, 64):
            continue
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model", Path(written["file"]).name])


@pytest.mark.slow
def test_a_program_loads_after_one_import(tmp_path):
    folder = directory(tmp_path / "model", "vig_tiny", **SMALL["vig_tiny"])
    written = toolkit.export(model=folder, format="torch-export", output=tmp_path / "vig.pt2")
    code = f"""
import torch, toolkit.tasks.classify
program = torch.export.load({written["file"]!r})
assert any("gated.bidirectional_gla" in str(node.target) for node in program.graph.nodes)
print(tuple(program.module()(torch.zeros(3, 3, 64, 80)).shape))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "(3, 5)", done.stderr


@pytest.fixture
def convnet(tmp_path) -> Path:
    return directory(tmp_path / "model", "test_convnext")


def test_a_file_that_differs_is_not_kept(convnet, tmp_path, monkeypatch):
    file = tmp_path / "convnet.pt2"
    file.write_text("of before")
    reader = exports._reader
    monkeypatch.setattr(exports, "_reader", lambda *given: lambda inputs: reader(*given)(inputs) + 2e-3)
    with pytest.raises(ToolkitError, match=r"test_convnext .* not kept: for \[2, 3, 64, 64\] it is off by 2.0e-03"):
        toolkit.export(model=convnet, format="torch-export", output=file)
    assert file.read_text() == "of before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["convnet.pt2", "model"]


def test_a_size_that_a_file_gets_wrong_is_fixed(convnet, tmp_path, monkeypatch):
    reader = exports._reader

    def wrong_for_other_sizes(*given):
        run = reader(*given)
        return lambda inputs: run(inputs) + (inputs[0].shape[2] != 64)

    monkeypatch.setattr(exports, "_reader", wrong_for_other_sizes)
    written = toolkit.export(model=convnet, format="torch-export", output=tmp_path)
    assert written["inputs"] == {"image": ["batch", 3, 64, 64]}
    assert written["notes"] == ["height and width fixed"]


def test_a_model_that_cannot_be_exported(convnet, tmp_path, monkeypatch):
    def by_value(self, x):
        return x.flatten(1)[:, : int(x.sum())]

    monkeypatch.setattr(timm.models.ConvNeXt, "forward", by_value)
    with pytest.raises(ToolkitError, match=r"test_convnext cannot be exported as torch-export, the exporter gave up: "):
        toolkit.export(model=convnet, format="torch-export", output=tmp_path / "x.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_name_without_published_weights_gets_random_ones():
    notes: list[str] = []
    found = exports._find("vig_tiny", False, notes)
    assert notes == ["random weights: timm has none of this name"]
    assert len(found.card["data"]["classes"]) == 1000


def test_random_weights_on_demand(tmp_path):
    written = toolkit.export(model="test_convnext", format="torch-export", output=tmp_path, untrained=True)
    assert written["notes"] == ["random weights"]
    assert Path(written["file"]).name == "test_convnext.pt2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "unknown format 'tflite'. There are onnx and torch-export"),
        ({"output": "nowhere/x.pt2"}, "cannot write nowhere/x.pt2: the folder nowhere does not exist"),
        ({"output": "x" * 248 + ".pt2"}, "cannot write x+.pt2: .* Choose another -o"),
        ({"output": "x.onnx"}, "cannot write x.onnx: its form is not known. Name a .pt2 file"),
        ({"run": "run"}, "name the model by one of --run and --model"),
        ({"untrained": True}, "--untrained takes a name of timm"),
    ],
)
def test_bad_input(convnet, options, message):
    with pytest.raises(InputError, match=message):
        toolkit.export(**{"model": convnet, "format": "torch-export", **options})


def test_a_file_is_replaced_only_by_its_name(convnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("test_convnext.pt2").write_text("of before")
    with pytest.raises(InputError, match=r"test_convnext.pt2 is there already. To replace it: -o test_convnext.pt2"):
        toolkit.export(model=convnet, format="torch-export")
    toolkit.export(model=convnet, format="torch-export", output="test_convnext.pt2")
    torch.export.load("test_convnext.pt2")


def test_without_the_extra(convnet, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", torch)  # whether it is installed or not
    with pytest.raises(MissingPackageError, match=r'needs onnxscript.* pip install "gated-toolkit\[export\]"'):
        toolkit.export(model=convnet)
