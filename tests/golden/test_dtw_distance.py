"""Every golden case of DTW distances: exact with three local costs, and FastDTW.

The sequences are too long for Triton's interpreter: the Triton form takes part where there is a GPU.
"""

from __future__ import annotations

import re

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.soft_dtw import dtw

TOLERANCE = 1e-5
FORMS = operators.FORMS[1:] if operators.TRITON_DEVICE == "cuda" else ("torch",)
COSTS = {"l1": "l1", "l2": "l2", "sq": "sqeuclidean"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", golden_cases("dtw_distance"))
def test_dtw_distance(name: str, dtype: torch.dtype, form: str) -> None:
    case = golden.load(name, FOLDER)
    x, y = (torch.from_numpy(case.input(key)).to(operators.device_of(form), dtype) for key in ("x", "y"))
    lengths = list(zip(case.config["lengths_x"], case.config["lengths_y"], strict=True))
    for output in case.golden:
        match = re.fullmatch(r"(?:exact|fast_r(?P<radius>\d+))_(?P<cost>\w+)", output)
        assert match is not None, output
        radius = None if match["radius"] is None else int(match["radius"])
        backend = "torch" if radius else form  # FastDTW has one form
        value = dtw(x, y, cost=COSTS[match["cost"]], lengths=lengths, radius=radius, backend=backend)
        case.check(output, value.cpu(), TOLERANCE)
