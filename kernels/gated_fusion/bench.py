"""What the benchmark measures: forward and backward of ten million elements against eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from toolkit.kernels import gated_fusion as operators
from toolkit.kernels._common.bench import Case, with_gradients
from toolkit.kernels.gated_fusion import reference

ELEMENTS = 10_000_000


def bench_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    x, a, b, dy = torch.randn(4, ELEMENTS, generator=generator).unbind()
    for kind in reference.GATES:
        inputs = [x, a, b] if kind == "gated_fusion" else [x, a]
        operator = getattr(operators, kind)

        def definition(
            x: torch.Tensor, a: torch.Tensor, b: torch.Tensor | None = None, kind: str = kind
        ) -> torch.Tensor:
            return reference.gated(x, a, b, kind)

        yield Case(
            name=f"{kind} fwd+bwd, 1e7 float32",
            ours=with_gradients(operator, inputs, dy),
            baselines={"eager": with_gradients(definition, inputs, dy)},
            exact=with_gradients(definition, [tensor.double() for tensor in inputs], dy.double()),
            most={"eager": 0.6},
        )
