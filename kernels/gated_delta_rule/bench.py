"""What the benchmark measures: 4 heads, 64 wide, against a token loop, a textbook chunk form and softmax attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.kernels._common.bench import Case, with_gradients
from toolkit.kernels.gated_delta_rule import gated_delta_rule, reference

H, D, SCALE = 4, 64, 64**-0.5
LENGTHS = (256, 768, 1024, 4096)
PROMISED = {("fwd", 1024): 0.71, ("fwd+bwd", 1024): 0.71, ("fwd", 4096): 0.5, ("fwd+bwd", 4096): 0.33}


def ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    return gated_delta_rule(q, k, v, g, beta)[0]


def definition(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    return reference.gated_delta_rule(q, k, v, g, beta, None, None, SCALE, False)[0]


def loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """A tight loop over tokens: everything that can be is done once for all of them."""
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


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def bench_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for T in LENGTHS:
        q, k, v, do = torch.randn(4, 1, T, H, D, generator=generator).unbind()
        g, beta = torch.rand(2, 1, T, H, generator=generator).unbind()
        inputs = [q, F.normalize(k, dim=-1), v, -0.1 * g, beta]
        doubles = [x.double() for x in inputs]

        def forward_only(function, *tensors):
            def compute() -> list[Tensor]:
                with torch.no_grad():
                    return [function(*tensors)]

            return compute

        yield Case(
            name=f"fwd, T={T} float32",
            ours=forward_only(ours, *inputs),
            baselines={
                "textbook chunks of 64, inverse row by row": forward_only(chunks_row_by_row, *inputs),
                "loop over tokens": forward_only(loop, *inputs),
                "causal SDPA": forward_only(attention, *inputs[:3]),
            },
            exact=forward_only(definition, *doubles),
            most=PROMISED.get(("fwd", T)),
        )
        # The definition under autograd is quadratic in T: the longest sequence is checked by the textbook's chunks.
        yield Case(
            name=f"fwd+bwd, T={T} float32",
            ours=with_gradients(ours, inputs, do),
            baselines={
                "textbook chunks of 64, inverse row by row": with_gradients(chunks_row_by_row, inputs, do),
                "loop over tokens": with_gradients(loop, inputs, do),
                "causal SDPA": with_gradients(attention, inputs[:3], do),
            },
            exact=with_gradients(definition if T <= 1024 else chunks_row_by_row, doubles, do.double()),
            most=PROMISED.get(("fwd+bwd", T)),
        )
