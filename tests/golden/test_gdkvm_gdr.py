"""Every golden case of GDKVM's recurrence from the published code, both versions: states, readouts and gates."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.gdkvm_memory import gdkvm_memory, gdkvm_memory_step, reference


@pytest.mark.parametrize("form", ["reference", "torch"])
@pytest.mark.parametrize("name", golden_cases("gdkvm_gdr"))
def test_gdkvm_gdr(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    config = case.config
    assert config["beta_expand"] == "interleave"
    stored = {key.removesuffix(".weight"): torch.from_numpy(x) for key, x in case.state().items()}
    options = {"decay": config["decay"], "alpha_expand": config["alpha_expand"], "backend": form}
    key, value = (torch.from_numpy(case.input(name)).flatten(-2).float() for name in ("key", "value"))
    readout, states = gdkvm_memory(key, value, **stored, **options)
    running = None
    for t in range(key.shape[1]):
        before = running
        step, running = gdkvm_memory_step(key[:, t], value[:, t], running, **stored, **options)
        results = {"state": states[:, t], "readout": readout[:, t].unflatten(-1, (config["h"], config["w"]))}
        torch.testing.assert_close((step, running), (readout[:, t], states[:, t]), rtol=1e-4, atol=1e-5)
        if before is not None:
            results["alpha"], results["beta"] = reference.gates(before, **stored, decay=config["decay"])
        operators.check_golden(case, {f"{key}_{t}": x for key, x in results.items() if f"{key}_{t}" in case.golden})
    assert {key.rsplit("_", 1)[0] for key in case.golden} <= {"state", "readout", "alpha", "beta"}
    assert max(int(key.rsplit("_", 1)[1]) for key in case.golden) < key.shape[1]


def test_cases_are_found() -> None:
    assert golden_cases("gdkvm_gdr")
