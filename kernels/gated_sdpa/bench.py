"""What the benchmark measures: attention with a gate per head against the library's attention and a multiplication."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.kernels._common.bench import Case, with_gradients
from toolkit.kernels.gated_sdpa import gated_sdpa

H, D = 4, 64


def bench_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for T, S in ((1024, 1024), (256, 1024)):
        shapes = (1, T, H, D), (1, S, H, D), (1, S, H, D), (1, T, H, 1)
        inputs = [torch.randn(shape, generator=generator) for shape in shapes]
        dy = torch.randn(1, T, H, D, generator=generator)

        def ours(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
            return gated_sdpa(q, k, v, gate, causal=True)

        def eager(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, T: int = T, S: int = S) -> Tensor:
            seen = None if T == S else torch.ones(T, S, dtype=torch.bool).tril(S - T)
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            o = F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None)
            return o.transpose(1, 2) * gate.sigmoid()

        yield Case(
            name=f"causal fwd+bwd, T={T} S={S} H={H} D={D} float32",
            ours=with_gradients(ours, inputs, dy),
            baselines={"library attention": with_gradients(eager, inputs, dy)},
            exact=with_gradients(ours, [tensor.double() for tensor in inputs], dy.double()),
        )
