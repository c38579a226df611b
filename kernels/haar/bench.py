"""What the benchmark measures: forward and backward of ten million samples against eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from toolkit.kernels._common.bench import Case, with_gradients
from toolkit.kernels.haar import haar, reference

ROWS, SAMPLES = 10_000, 1_000


def bench_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, SAMPLES, generator=generator)
    grads = torch.randn(2, ROWS, SAMPLES // 2, generator=generator).unbind()
    yield Case(
        name="haar fwd+bwd, 1e7 float32",
        ours=with_gradients(haar, [x], *grads),
        baselines={"eager": with_gradients(reference.haar, [x], *grads)},
        exact=with_gradients(reference.haar, [x.double()], *(grad.double() for grad in grads)),
    )
