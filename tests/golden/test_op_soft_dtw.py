"""Every golden case of the soft-DTW operator: values, the hard limit, alignments and gradients, in each form."""

from __future__ import annotations

import golden
import operators
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.soft_dtw import dtw, soft_dtw, soft_dtw_from_costs
from toolkit.kernels.soft_dtw.reference import pairwise

COSTS = {"squared Euclidean": "sqeuclidean", "Euclidean": "l2", "L1": "l1"}


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("name", golden_cases("op_soft_dtw"))
def test_op_soft_dtw(name: str, form: str) -> None:
    case = golden.load(name, FOLDER)
    x, y = operators.golden_inputs(case, ("x", "y"), form)
    grad_out = torch.from_numpy(case.input("grad_out"))
    cost, gamma = COSTS[case.config["cost"]], case.config["gamma"]
    options = {key: case.config.get(key) for key in ("lengths", "bandwidth")} | {"backend": form}

    def from_points(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return soft_dtw(x, y, gamma=gamma, cost=cost, **options)

    def from_costs(costs: torch.Tensor) -> torch.Tensor:
        return soft_dtw_from_costs(costs, gamma=gamma, **options)

    value, dx, dy = operators.gradients(from_points, [x, y], grad_out)
    costs = pairwise(x, y, cost).detach().requires_grad_()
    same, alignment = operators.gradients(from_costs, [costs], torch.ones(len(x)))
    torch.testing.assert_close(same.float(), value, rtol=1e-5, atol=1e-5)
    results = {"value": value, "hard_dtw": dtw(x, y, cost=cost, **options), "alignment": alignment}
    results |= {"dcost": alignment * grad_out.to(alignment).view(-1, 1, 1), "dx": dx, "dy": dy}
    operators.check_golden(case, {output: results[output] for output in case.golden})


def test_cases_are_found() -> None:
    assert golden_cases("op_soft_dtw")
