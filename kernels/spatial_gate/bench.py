"""What the benchmark measures: both axes at a size of MAXIM's first stage against eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from toolkit.kernels._common.bench import Case, with_gradients
from toolkit.kernels.spatial_gate import reference, spatial_gate

TOKENS, REST, CHANNELS, EPS = 256, 256, 32, 1e-6  # 256 x 256 pixels as 16 x 16 cells of 16 x 16 positions


def bench_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    shapes = (1, REST, TOKENS, 2 * CHANNELS), (TOKENS, TOKENS), (TOKENS,), (CHANNELS,), (CHANNELS,)
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    inputs[1] /= TOKENS**0.5
    dy = torch.randn(1, REST, TOKENS, CHANNELS, generator=generator)
    for axis, name in ((1, "cells"), (2, "positions")):

        def definition(
            x: Tensor, kernel: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, axis: int = axis
        ) -> Tensor:
            return reference.spatial_gate(x, kernel, bias, scale, shift, axis, EPS)

        def ours(x: Tensor, kernel: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, axis: int = axis) -> Tensor:
            return spatial_gate(x, kernel, bias, scale, shift, axis=axis, eps=EPS)

        yield Case(
            name=f"256 {name} fwd+bwd, 256 x 256 x 32 float32",
            ours=with_gradients(ours, inputs, dy),
            baselines={"eager": with_gradients(definition, inputs, dy)},
            exact=with_gradients(definition, [tensor.double() for tensor in inputs], dy.double()),
        )
