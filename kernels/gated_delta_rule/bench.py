"""What the benchmark measures: 4 heads, 64 wide, against a textbook chunk form, token loops and softmax attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.kernels._common.bench import PASSES, Case, sequence_case
from toolkit.kernels.gated_delta_rule import gated_delta_rule, reference

H, D, SCALE = 4, 64, 64**-0.5
LENGTHS = (256, 512, 768, 1024, 4096, 16384)
ROWS = "chunks, inverse row by row"
# Of a baseline's time, by pass and length.
PROMISED = {
    ("fwd", 1024): {ROWS: 0.71},
    ("fwd+bwd", 1024): {ROWS: 0.71},
    ("fwd", 4096): {ROWS: 0.5},
    ("fwd+bwd", 4096): {ROWS: 0.33},
}


def ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    return gated_delta_rule(q, k, v, g, beta)[0]


def definition(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    return reference.gated_delta_rule(q, k, v, g, beta, None, None, SCALE, False)[0]


def loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The recurrence as it is usually written: each step picks its token of every input."""
    state = q.new_zeros(q.shape[0], H, D, D)
    outputs = []
    for t in range(q.shape[1]):
        k_t = k[:, t]
        state = g[:, t].exp()[..., None, None] * state
        read = (k_t.unsqueeze(-2) @ state).squeeze(-2)
        written = beta[:, t].unsqueeze(-1) * (v[:, t] - read)
        state = state + k_t.unsqueeze(-1) * written.unsqueeze(-2)
        outputs.append(((q[:, t] * SCALE).unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1)


def loop_unbound(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """A tighter loop: everything that can be is done once for all tokens, which are taken apart at once."""
    q, k_row, k_column, v = (q * SCALE).unsqueeze(-2), k.unsqueeze(-2), k.unsqueeze(-1), v.unsqueeze(-2)
    a, beta = g.exp()[..., None, None], beta[..., None, None]
    state = q.new_zeros(q.shape[0], H, D, D)
    outputs = []
    for q_t, row, column, v_t, a_t, beta_t in zip(
        *(x.unbind(1) for x in (q, k_row, k_column, v, a, beta)), strict=True
    ):
        state = a_t * state
        state = torch.addcmul(state, column, beta_t * (v_t - row @ state))
        outputs.append(q_t @ state)
    return torch.stack(outputs, 1).squeeze(-2)


def chunks_row_by_row(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, C: int = 64) -> Tensor:
    """The textbook chunk form under plain autograd; the triangular inverse is built row by row."""
    B, T, _, _ = q.shape
    q, k, v, beta = (x.transpose(1, 2).reshape(B, H, T // C, C, -1) for x in (q * SCALE, k, v, beta.unsqueeze(-1)))
    b = g.transpose(1, 2).reshape(B, H, T // C, C).cumsum(-1)
    later = torch.ones(C, C, dtype=torch.bool).triu(1)
    decay = (b.unsqueeze(-1) - b.unsqueeze(-2)).masked_fill(later, -torch.inf).exp()
    M = -((beta * k) @ k.mT * decay).tril(-1)
    rows = [M[..., 0, :]]
    for i in range(1, C):
        rows.append(M[..., i, :] + (M[..., i, :i].unsqueeze(-2) @ torch.stack(rows, -2)).squeeze(-2))
    X = torch.stack(rows, -2) + torch.eye(C, dtype=q.dtype)
    b = b.unsqueeze(-1)
    u, w, A = X @ (beta * v), X @ (beta * b.exp() * k), q @ k.mT * decay
    q_in, k_out, total = b.exp() * q, (b[..., -1:, :] - b).exp() * k, b[..., -1:, :].exp()
    state = q.new_zeros(B, H, D, D)
    outputs = []
    for c in range(T // C):
        written = u[:, :, c] - w[:, :, c] @ state
        outputs.append(A[:, :, c] @ written + q_in[:, :, c] @ state)
        state = total[:, :, c] * state + k_out[:, :, c].mT @ written
    return torch.stack(outputs, 2).reshape(B, H, T, D).transpose(1, 2)


def bench_cases() -> Iterator[Case]:
    for T in LENGTHS:
        for passes in PASSES:
            yield case(passes, T)


def memory_case() -> Case:
    return case("fwd+bwd", LENGTHS[-1])


def case(passes: str, T: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    q, k, v, do = torch.randn(4, 1, T, H, D, generator=generator).unbind()
    g, beta = torch.rand(2, 1, T, H, generator=generator).unbind()
    inputs = [q, F.normalize(k, dim=-1), v, -0.1 * g, beta]
    return sequence_case(
        passes,
        inputs,
        do,
        ours,
        definition,
        chunks=(ROWS, chunks_row_by_row),
        loops={"loop": loop, "loop, unbound": loop_unbound},
        most=PROMISED.get((passes, T), {}),
        slow_chunks=True,
    )
