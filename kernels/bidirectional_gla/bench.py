"""What the benchmark measures: both directions at once against two recurrences over tokens, and ``gla`` twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from toolkit.kernels._common.bench import Case, with_gradients
from toolkit.kernels.bidirectional_gla import bidirectional_gla, reference
from toolkit.kernels.gla import gla


def definition(q: Tensor, k: Tensor, v: Tensor, g_forward: Tensor, g_backward: Tensor) -> Tensor:
    return reference.bidirectional_gla(q, k, v, g_forward, g_backward, None, q.shape[-1] ** -0.5)


def recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """A tight loop over tokens: everything that can be is done once for all of them."""
    q, k, v, a = (q * q.shape[-1] ** -0.5).unsqueeze(-2), k.unsqueeze(-1), v.unsqueeze(-2), g.exp().unsqueeze(-1)
    state = q.new_zeros(*k[:, 0].shape[:-1], v.shape[-1])
    outputs = []
    for q_t, k_t, v_t, a_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), a.unbind(1), strict=True):
        state = torch.addcmul(a_t * state, k_t, v_t)
        outputs.append(q_t @ state)
    return torch.stack(outputs, 1).squeeze(-2)


def pass_of_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return gla(q, k, v, g)[0]


def twice(one_way: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Both directions by runs over the tokens and over a flipped copy of them."""

    def both(q: Tensor, k: Tensor, v: Tensor, g_forward: Tensor, g_backward: Tensor) -> Tensor:
        flipped = one_way(*(x.flip(1) for x in (q, k, v, g_backward))).flip(1)
        return (one_way(q, k, v, g_forward) + flipped) / 2

    return both


def bench_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for B, T, H, K, V in ((8, 196, 3, 32, 64), (1, 1024, 4, 64, 64)):
        q, k = torch.randn(2, B, T, H, K, generator=generator).unbind()
        v, do = torch.randn(2, B, T, H, V, generator=generator).unbind()
        inputs = [q, k, v, *(-0.1 * torch.rand(2, B, T, H, K, generator=generator)).unbind()]
        yield Case(
            name=f"fwd+bwd, {B}x{T}, {H} heads, {K} and {V} wide",
            ours=with_gradients(bidirectional_gla, inputs, do),
            baselines={
                "recurrence": with_gradients(twice(recurrence), inputs, do),
                "gla twice": with_gradients(twice(pass_of_gla), inputs, do),
            },
            exact=with_gradients(definition, [x.double() for x in inputs], do.double()),
        )
