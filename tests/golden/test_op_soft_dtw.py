"""Every golden case of the soft-DTW operator: values, the hard limit, alignments and gradients."""

from __future__ import annotations

import golden
import pytest
import torch
from families import FOLDER, golden_cases

from toolkit.kernels.soft_dtw import dtw, soft_dtw, soft_dtw_from_costs
from toolkit.kernels.soft_dtw.reference import pairwise

TOLERANCE = 1e-5
COSTS = {"squared Euclidean": "sqeuclidean", "Euclidean": "l2", "L1": "l1"}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", golden_cases("op_soft_dtw"))
def test_op_soft_dtw(name: str, backend: str) -> None:
    case = golden.load(name, FOLDER)
    x, y, grad_out = (torch.from_numpy(case.input(key)).float() for key in ("x", "y", "grad_out"))
    cost, gamma = COSTS[case.config["cost"]], case.config["gamma"]
    options = {key: case.config.get(key) for key in ("lengths", "bandwidth")} | {"backend": backend}

    x.requires_grad_()
    y.requires_grad_()
    value = soft_dtw(x, y, gamma=gamma, cost=cost, **options)
    dx, dy = torch.autograd.grad((value * grad_out).sum(), (x, y))
    costs = pairwise(x, y, cost).detach().requires_grad_()
    from_costs = soft_dtw_from_costs(costs, gamma=gamma, **options)
    (alignment,) = torch.autograd.grad(from_costs.sum(), costs, retain_graph=True)
    (dcost,) = torch.autograd.grad((from_costs * grad_out).sum(), costs)
    torch.testing.assert_close(from_costs.float(), value, rtol=1e-5, atol=1e-5)
    outputs = {"value": value.detach(), "hard_dtw": dtw(x, y, cost=cost, **options).detach()}
    outputs |= {"alignment": alignment, "dcost": dcost, "dx": dx, "dy": dy}
    for output in case.golden:
        case.check(output, outputs[output], TOLERANCE)
