"""What the benchmark measures: 4 heads, 64 wide, against a textbook chunk form, a token loop and softmax attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.kernels._common.bench import Case, Computation, with_gradients
from toolkit.kernels.gla import gla, reference

H, D, SCALE = 4, 64, 64**-0.5
# Of the chunk form's time, by pass and length; the loop under autograd is quadratic in T.
PROMISED = {("fwd", 1024): 0.9, ("fwd+bwd", 1024): 0.9, ("fwd+bwd", 4096): 0.7, ("fwd", 16384): 0.6}
LOOP_IS_TRAINED_UNTIL = 1024


def ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return gla(q, k, v, g)[0]


def definition(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return reference.gla(q, k, v, g, None, None, SCALE)[0]


def loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """A tight loop over tokens: everything that can be is done once for all of them."""
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


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def forward_only(function: Callable[..., Tensor], inputs: list[Tensor]) -> Computation:
    def compute() -> list[Tensor]:
        with torch.no_grad():
            return [function(*inputs)]

    return compute


def bench_cases() -> Iterator[Case]:
    for T in (256, 1024, 4096, 16384):
        yield case("fwd", T)
        if T <= 4096:
            yield case("fwd+bwd", T)


def case(passes: str, T: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    q, k, v, do = torch.randn(4, 1, T, H, D, generator=generator).unbind()
    inputs = [q, k, v, -0.1 * torch.rand(1, T, H, D, generator=generator)]

    def computation(function: Callable[..., Tensor], inputs: list[Tensor]) -> Computation:
        return forward_only(function, inputs) if passes == "fwd" else with_gradients(function, inputs, do.to(inputs[0]))

    trains_loop = passes == "fwd" or T <= LOOP_IS_TRAINED_UNTIL
    baselines = {"chunks": computation(chunks, inputs)}
    if trains_loop and T <= 4096:
        baselines["loop"] = computation(loop, inputs)
    if T <= 4096:
        baselines["sdpa"] = computation(attention, inputs[:3])
    return Case(
        name=f"{passes}, T={T}",
        ours=computation(ours, inputs),
        baselines=baselines,
        exact=computation(definition if trains_loop else chunks, [x.double() for x in inputs]),
        most=PROMISED.get((passes, T)),
    )
