"""The gate as one function with a hand-written backward: 11 operations instead of the 25 that autograd runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from toolkit.kernels._common.autograd import differentiable_gradients
from toolkit.kernels.linear_gate import reference


class LinearGateFunction(Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, weight_a: Tensor, bias_a: Tensor, weight_b: Tensor, bias_b: Tensor
    ) -> Tensor:
        rows_a, rows_b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        gate = torch.addmm(bias_a, rows_a, weight_a.t()).addmm_(rows_b, weight_b.t()).add_(bias_b).sigmoid_()
        ctx.save_for_backward(a, b, weight_a, bias_a, weight_b, bias_b, gate)
        return torch.lerp(rows_b, rows_a, gate).view(a.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, gate = ctx.saved_tensors
        if torch.is_grad_enabled():  # the caller will differentiate again
            return differentiable_gradients(reference.linear_gate, inputs, dy)
        a, b, weight_a, _, weight_b, _ = inputs
        rows_a, rows_b, dy = (tensor.reshape(gate.shape) for tensor in (a, b, dy))

        dlogits = torch.ops.aten.sigmoid_backward((rows_a - rows_b).mul_(dy), gate)
        da = dy * gate
        db = dy - da
        da.addmm_(dlogits, weight_a)
        db.addmm_(dlogits, weight_b)
        dbias = dlogits.sum(0)
        dweight_a, dweight_b = torch.mm(dlogits.t(), rows_a), torch.mm(dlogits.t(), rows_b)
        return da.view(a.shape), db.view(b.shape), dweight_a, dbias, dweight_b, dbias.clone()


linear_gate = LinearGateFunction.apply
