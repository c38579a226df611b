from __future__ import annotations

import golden
import pytest
import torch

import toolkit
from toolkit.errors import InputError

CASE = golden.load("gateformer_small", golden.HERE)
X = torch.from_numpy(CASE.input("x_enc"))


def official_state(prefix: str = "", positions: bool = True) -> dict[str, torch.Tensor]:
    state = {prefix + name: torch.from_numpy(value) for name, value in CASE.state().items()}
    if positions:
        state[f"{prefix}patch_embedding.position_embedding.pe"] = torch.zeros(1, 5000, 16)
    return state


def check(model: torch.nn.Module) -> None:
    with torch.no_grad():
        CASE.check("forecast", model(X), 1e-5)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("positions", [False, True])
def test_official_state_dicts(prefix, positions):
    check(toolkit.from_official("gateformer", official_state(prefix, positions), n_heads=4))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_official_files_become_model_directories(suffix, tmp_path):
    path = tmp_path / f"checkpoint.{suffix}"
    if suffix == "pth":
        torch.save(official_state("module."), path)
    else:
        from safetensors.torch import save_file

        save_file(official_state(), path)
    folder = toolkit.convert("gateformer", path, tmp_path / "model", n_heads=4)
    check(toolkit.load(folder))


def test_every_problem_of_an_official_state_is_listed():
    state = official_state()
    del state["gate_w2.bias"]
    state["gate_w5.weight"] = torch.zeros(1)
    state["gate_w1.weight"] = torch.zeros(3, 3)
    with pytest.raises(InputError) as caught:
        toolkit.from_official("gateformer", state, n_heads=4)
    message = str(caught.value)
    assert "missing: variate_embedding.linear_b.bias" in message
    assert "unexpected: gate_w5.weight" in message
    assert "variate_embedding.linear_a.weight (3, 3) instead of (16, 16)" in message


def test_wrong_sizes_and_families_are_refused(tmp_path):
    with pytest.raises(InputError, match="horizon"):
        toolkit.from_official("gateformer", official_state(), pred_len=13)
    with pytest.raises(InputError, match="Did you mean 'gateformer'"):
        toolkit.from_official("gatformer", official_state())
    with pytest.raises(InputError, match=r"no checkpoint at .*absent\.pth"):
        toolkit.convert("gateformer", tmp_path / "absent.pth", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_save_and_load(tmp_path):
    model = toolkit.create_model("gateformer", lookback=24, horizon=6, dim=8, num_heads=2, depth=1, mlp_dim=8).eval()
    toolkit.save(model, tmp_path / "model", note="mine")
    again = toolkit.load(tmp_path / "model")
    x = torch.randn(2, 24, 3)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))


def test_create_model_checks_arguments():
    with pytest.raises(InputError, match="unknown key 'depht' for Gateformer. Did you mean 'depth'"):
        toolkit.create_model("gateformer", lookback=24, horizon=6, depht=1)


def test_unregistered_models_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match="Linear is not a registered model"):
        toolkit.save(torch.nn.Linear(2, 2), tmp_path / "model")
