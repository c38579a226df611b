"""Every golden case of soft-DTW with lengths and fractional bands: values and gradients, in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.soft_dtw import soft_dtw

TOLERANCE = 1e-5


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("name", golden_cases("soft_dtw"))
def test_soft_dtw(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    device = operators.device_of(form)
    x, y = (torch.from_numpy(case.input(key)).to(device, torch.float32) for key in ("x", "y"))
    x.requires_grad_()
    lengths = list(zip(case.config["lengths_x"], case.config["lengths_y"], strict=True))
    unseen = set(case.golden)
    for setting in case.config["settings"]:
        gamma, bandwidth = setting["gamma"], setting["bandwidth"]
        fraction = None if bandwidth is None else float(bandwidth)
        value = soft_dtw(x, y, gamma=gamma, lengths=lengths, bandwidth=fraction, backend=form)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        suffix = f"gamma{gamma}_band{bandwidth}"
        case.check(f"value_{suffix}", value.detach().cpu(), TOLERANCE)
        case.check(f"grad_{suffix}", gradient.cpu(), TOLERANCE)
        unseen -= {f"value_{suffix}", f"grad_{suffix}"}
    assert not unseen
