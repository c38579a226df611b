"""What the benchmark measures: 4 heads, 64 wide, against a textbook chunk form, token loops and softmax attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from toolkit.kernels._common.bench import PASSES, Case, sequence_case
from toolkit.kernels.gla import gla, reference

H, D, SCALE = 4, 64, 64**-0.5
LENGTHS = (256, 512, 1024, 4096, 16384)
# Of a baseline's time, by pass and length.
PROMISED = {
    ("fwd", 1024): {"chunks": 0.85, "loop": 0.15, "sdpa": 0.5},
    ("fwd+bwd", 1024): {"chunks": 0.85, "loop": 0.04, "sdpa": 0.5},
    ("fwd", 4096): {"chunks": 0.6, "loop": 0.12, "sdpa": 0.2},
    ("fwd+bwd", 4096): {"chunks": 0.6, "loop": 0.01, "sdpa": 0.2},
    ("fwd", 16384): {"chunks": 0.5},
    ("fwd+bwd", 16384): {"chunks": 0.33},
}


def ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return gla(q, k, v, g)[0]


def definition(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return reference.gla(q, k, v, g, None, None, SCALE)[0]


def loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """The recurrence as it is usually written: each step picks its token of every input."""
    state = q.new_zeros(q.shape[0], H, D, D)
    outputs = []
    for t in range(q.shape[1]):
        written = k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        state = g[:, t].exp().unsqueeze(-1) * state + written
        outputs.append(((q[:, t] * SCALE).unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1)


def loop_unbound(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """A tighter loop: everything that can be is done once for all tokens, which are taken apart at once."""
    q, k, v, a = (q * SCALE).unsqueeze(-2), k.unsqueeze(-1), v.unsqueeze(-2), g.exp().unsqueeze(-1)
    state = q.new_zeros(q.shape[0], H, D, D)
    outputs = []
    for q_t, k_t, v_t, a_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), a.unbind(1), strict=True):
        state = torch.addcmul(a_t * state, k_t, v_t)
        outputs.append(q_t @ state)
    return torch.stack(outputs, 1).squeeze(-2)


def chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, C: int = 64) -> Tensor:
    """The textbook chunk form under plain autograd; valid for mild decays only."""
    B, T, _, _ = q.shape
    q, k, v, g = (x.transpose(1, 2).reshape(B, H, T // C, C, D) for x in (q * SCALE, k, v, g))
    b = g.cumsum(3)
    total = b[:, :, :, -1:]
    query = q * b.exp()
    A = (query @ (k * (-b).exp()).mT).tril()
    updates = (k * (total - b).exp()).mT @ v
    decay = total.exp().mT
    state = q.new_zeros(B, H, D, D)
    states = []
    for c in range(T // C):
        states.append(state)
        state = decay[:, :, c] * state + updates[:, :, c]
    return (A @ v + query @ torch.stack(states, 2)).reshape(B, H, T, D).transpose(1, 2)


def bench_cases() -> Iterator[Case]:
    for T in LENGTHS:
        for passes in PASSES:
            yield case(passes, T)


def memory_case() -> Case:
    return case("fwd+bwd", LENGTHS[-1])


def case(passes: str, T: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    q, k, v, do = torch.randn(4, 1, T, H, D, generator=generator).unbind()
    inputs = [q, k, v, -0.1 * torch.rand(1, T, H, D, generator=generator)]
    return sequence_case(
        passes,
        inputs,
        do,
        ours,
        definition,
        chunks=("chunks", chunks),
        loops={"loop": loop, "loop, unbound": loop_unbound},
        most=PROMISED.get((passes, T), {}),
    )
