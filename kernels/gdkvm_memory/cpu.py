"""GDKVM's memory in Gram form, in plain PyTorch.

With ``G = K K^T`` the erase term ``K (K^T S)`` is ``G S``: 2 K^2 V operations instead of 4 K P V, and G is shared by
the objects. What does not depend on the state is computed for all frames at once. Legend as in ``reference.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    key: Tensor,
    value: Tensor,
    a_proj: Tensor,
    b_proj: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    initial_state: Tensor | None,
    decay: str,
    alpha_expand: str,
    key_scale: str,
) -> tuple[Tensor, Tensor]:
    """Readouts and the states after each frame."""
    with torch.autocast(key.device.type, enabled=False):
        keys, gram, values = _operands(key, value)
        states = torch.matmul(keys.unsqueeze(2), values.mT)  # what each frame writes, then the states in its place
        if key_scale == "spectral":
            _bound(gram, states, torch.linalg.eigvalsh(gram)[..., -1].clamp_min(1))
        before = None if initial_state is None else initial_state.float()
        for t, state in enumerate(states.unbind(1)):
            if before is not None:
                gates = Gates(before, a_proj, b_proj, A_log, dt_bias, decay, alpha_expand)
                erased = torch.matmul(gram[:, t, None], before)
                kept = gates.alpha_times(before - gates.beta_times(erased))
                state.copy_(gates.beta_times(state)).add_(kept)
            before = state
        return torch.matmul(states.mT, keys.unsqueeze(2)).to(value.dtype), states


def backward(
    dreadout: Tensor | None,
    dstates: Tensor | None,
    states: Tensor,
    key: Tensor,
    value: Tensor,
    a_proj: Tensor,
    b_proj: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    initial_state: Tensor | None,
    decay: str,
    alpha_expand: str,
    key_scale: str,
) -> list[Tensor]:
    """Gradients of key, value, the four parameters, and of the initial state where there is one."""
    with torch.autocast(key.device.type, enabled=False):
        keys, gram, values = _operands(key, value)
        writes = torch.matmul(keys.unsqueeze(2), values.mT)
        if key_scale == "spectral":
            eigenvalues, eigenvectors = torch.linalg.eigh(gram)
            largest, direction = eigenvalues[..., -1], eigenvectors[..., -1:]
            bound = largest.clamp_min(1)
            _bound(gram, writes, bound)
        ds = torch.zeros_like(states) if dstates is None else dstates.clone(memory_format=torch.contiguous_format)
        dkeys = torch.zeros_like(keys)
        if dreadout is not None:
            read = dreadout.float()
            ds += torch.matmul(keys.unsqueeze(2), read.mT)
            dkeys += _over_objects(states, read)

        heads, V = a_proj.shape
        dprojections = a_proj.new_zeros(2 * heads, V, dtype=torch.float32)
        dA_log, ddt_bias = (x.new_zeros(heads, dtype=torch.float32) for x in (A_log, dt_bias))
        dgram = torch.zeros_like(gram)
        dinitial = None
        for t in range(key.shape[1] - 1, -1, -1):
            before = states[:, t - 1] if t else None if initial_state is None else initial_state.float()
            if before is None:
                break
            gates = Gates(before, a_proj, b_proj, A_log, dt_bias, decay, alpha_expand)
            erased = torch.matmul(gram[:, t, None], before)
            d = ds[:, t]
            dkept = gates.alpha_times(d)
            dalpha = gates.alpha_fold(d * (before - gates.beta_times(erased)))
            dbeta = gates.beta_fold((d * writes[:, t]).addcmul_(dkept, erased, value=-1))
            derased = gates.beta_times(dkept).neg_()
            d.copy_(gates.beta_times(d))  # from here on the gradient of what the frame writes
            dgram[:, t] = torch.matmul(derased, before.mT).sum(1)

            dlog = dalpha * gates.alpha if decay == "exp" else dalpha
            dA_log += (dlog * gates.log_alpha).sum((0, 1, 2))
            dy = dlog.mul_(gates.slope)
            ddt_bias += dy.sum((0, 1, 2))
            dprojected = torch.cat([dbeta * gates.beta * (1 - gates.beta), dy], -1)
            dprojections += dprojected.flatten(0, 2).mT @ before.flatten(0, 2)
            dbefore = dkept.add_(torch.matmul(gram[:, t, None], derased)).add_(dprojected @ gates.projections)
            if t:
                ds[:, t - 1] += dbefore
            else:
                dinitial = dbefore

        if key_scale == "spectral":
            dbound = -((dgram * gram).sum((2, 3)) + (ds * writes).sum((2, 3, 4))) / bound
            _bound(dgram, ds, bound)
            dgram += (dbound * (largest > 1))[..., None, None] * (direction * direction.mT)
        dkeys += _over_objects(ds, values) + torch.matmul(dgram + dgram.mT, keys)
        dkey = keys * (dkeys - (keys * dkeys).sum(2, keepdim=True))
        dvalue = torch.matmul(ds.mT, keys.unsqueeze(2))
        db_proj, da_proj = (x.clone() for x in dprojections.split(heads))  # results of an operator share no memory
        inputs = (key, value, a_proj, b_proj, A_log, dt_bias, initial_state)
        found = (dkey, dvalue, da_proj, db_proj, dA_log, ddt_bias, dinitial)
        return [d.to(x.dtype) for d, x in zip(found, inputs, strict=True) if d is not None and x is not None]


def _operands(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The softmaxed keys ``[B, T, K, P]``, their Gram matrices ``[B, T, K, K]``, and the values, all float32."""
    keys = key.float().softmax(2)
    return keys, torch.matmul(keys, keys.mT), value.float()


def _bound(gram: Tensor, writes: Tensor, bound: Tensor) -> None:
    """Divides ``[B, T, K, K]`` and ``[B, T, N, K, V]`` in place by each frame's bound ``[B, T]``."""
    gram /= bound[..., None, None]
    writes /= bound[..., None, None, None]


def _over_objects(x: Tensor, y: Tensor) -> Tensor:
    """``sum_n x_n y_n`` of ``[B, T, N, K, V]`` and ``[B, T, N, V, P]``."""
    return torch.matmul(x.transpose(2, 3).flatten(3), y.flatten(2, 3))


@dataclass
class Gates:
    """Both gates of a frame ``[B, N, K, heads]``, from the state before it.

    Attributes:
        projections: ``[2 heads, V]``, of beta and then of alpha.
        slope: the derivative of ``log_alpha`` with respect to its projection.
    """

    state: Tensor
    a_proj: Tensor
    b_proj: Tensor
    A_log: Tensor
    dt_bias: Tensor
    decay: str
    alpha_expand: str

    def __post_init__(self) -> None:
        self.projections = torch.cat([self.b_proj, self.a_proj]).float()
        projected_beta, y = (self.state @ self.projections.mT).chunk(2, -1)
        self.beta = projected_beta.sigmoid()
        rate, y = self.A_log.float().exp(), y + self.dt_bias.float()
        self.log_alpha = F.softplus(y).mul_(rate).neg_()
        self.slope = y.sigmoid().mul_(rate).neg_()
        self.alpha = self.log_alpha.exp() if self.decay == "exp" else self.log_alpha

    def beta_times(self, x: Tensor) -> Tensor:
        """Each head's beta times its neighbouring columns."""
        return (x.unflatten(-1, (self.beta.shape[-1], -1)) * self.beta.unsqueeze(-1)).flatten(-2)

    def beta_fold(self, x: Tensor) -> Tensor:
        """Sums over the columns of each head's beta."""
        return x.unflatten(-1, (self.beta.shape[-1], -1)).sum(-1)

    def alpha_times(self, x: Tensor) -> Tensor:
        if self.alpha_expand == "interleave":
            return (x.unflatten(-1, (self.alpha.shape[-1], -1)) * self.alpha.unsqueeze(-1)).flatten(-2)
        return (x.unflatten(-1, (-1, self.alpha.shape[-1])) * self.alpha.unsqueeze(-2)).flatten(-2)

    def alpha_fold(self, x: Tensor) -> Tensor:
        if self.alpha_expand == "interleave":
            return x.unflatten(-1, (self.alpha.shape[-1], -1)).sum(-1)
        return x.unflatten(-1, (-1, self.alpha.shape[-1])).sum(-2)
