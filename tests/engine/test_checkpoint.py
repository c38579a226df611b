from __future__ import annotations

import pickle
import shutil

import pytest
import torch
from torch import nn

from toolkit.engine import checkpoint
from toolkit.errors import InputError

CARD = {"architecture": "linear"}


@pytest.fixture
def saved(tmp_path):
    model = nn.Linear(3, 2)
    state = {"step": 7, "numbers": [1, 2.5], "tensor": torch.arange(3)}
    checkpoint.save(tmp_path / "best", model.state_dict(), CARD, {"width": torch.ones(2)}, state)
    return tmp_path / "best", model


def test_round_trip(saved):
    folder, model = saved
    assert checkpoint.read_card(folder) == CARD
    weights = checkpoint.read_tensors(folder / checkpoint.MODEL)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert checkpoint.read_tensors(folder / checkpoint.EXTRA)["width"].tolist() == [1, 1]
    assert checkpoint.read_state(folder)["step"] == 7


def test_views_of_one_buffer_are_saved(tmp_path):
    flat = torch.arange(6.0)
    checkpoint.save(tmp_path / "m", {"a": flat[:2], "b": flat[2:]}, CARD)
    assert checkpoint.read_tensors(tmp_path / "m" / checkpoint.MODEL)["b"].tolist() == [2, 3, 4, 5]


def test_a_failed_write_leaves_the_old_folder(saved):
    folder, _ = saved
    with pytest.raises(RuntimeError, match="disk"), checkpoint.write_folder(folder) as aside:
        (aside / "half").write_text("x")
        raise RuntimeError("disk")
    assert checkpoint.read_card(folder) == CARD
    assert [path.name for path in folder.parent.iterdir()] == ["best"]


def test_death_between_the_renames_is_survived(saved):
    folder, _ = saved
    folder.rename(folder.with_name(".old-best"))
    assert checkpoint.existing(folder) == folder.with_name(".old-best")


def test_truncated_safetensors(saved):
    path = saved[0] / checkpoint.MODEL
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"model.safetensors is damaged"):
        checkpoint.read_tensors(path)


def test_truncated_pytorch_file(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"weight": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"checkpoint.pth is (truncated|damaged)"):
        checkpoint.read_tensors(path)


class Evil:
    def __reduce__(self):
        return shutil.rmtree, ("/nonexistent-folder",)


@pytest.mark.parametrize(
    "write", [lambda path: torch.save(Evil(), path), lambda path: path.write_bytes(pickle.dumps(Evil()))]
)
def test_pickled_code_is_never_run(write, tmp_path):
    path = tmp_path / "evil.pth"
    write(path)
    with pytest.raises(InputError, match="pickled code, which is never run"):
        checkpoint.read_tensors(path)


@pytest.mark.parametrize(("content", "message"), [([1, 2], "holds no table"), ({"epoch": 3}, "holds no tensors")])
def test_files_without_tensors(content, message, tmp_path):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match=message):
        checkpoint.read_tensors(path)


def test_nested_state_dicts_are_found(tmp_path):
    path = tmp_path / "nested.pt"
    torch.save({"epoch": 3, "state_dict": {"weight": torch.ones(2)}}, path)
    assert list(checkpoint.read_tensors(path)) == ["weight"]


def test_everything_that_does_not_fit_is_listed():
    state = {"weight": torch.ones(5, 3), "other": torch.ones(1)}
    with pytest.raises(InputError) as caught:
        checkpoint.load_strictly(nn.Linear(3, 2), state, "x.pth")
    message = str(caught.value)
    assert "missing: bias" in message
    assert "unexpected: other" in message
    assert "weight (5, 3) instead of (2, 3)" in message


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "no model directory"),
        (lambda folder: folder.mkdir(), "it has no config.json"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{")), "damaged"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{}")), "describes no model"),
    ],
)
def test_no_model_directory(prepare, message, tmp_path):
    prepare(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        checkpoint.read_card(tmp_path / "model")
