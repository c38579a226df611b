"""What the benchmark measures: a block of HorNet's first stage, forward and backward, against eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from toolkit.kernels._common.bench import Case, with_gradients
from toolkit.kernels.gnconv import Weights, gnconv, reference

D, K, SIDE, SCALE = 64, 7, 56, 1 / 3


def bench_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, D, SIDE, SIDE), (2 * D, D, 1, 1), (2 * D,), (96, 1, K, K), (96,)]  # widths 32 and 64
    shapes += [(D, D // 2, 1, 1), (D,), (D, D, 1, 1), (D,)]
    fans = (1, D, 1, K * K, 1, D // 2, 1, D, 1)
    inputs = [torch.randn(s, generator=generator) / fan**0.5 for s, fan in zip(shapes, fans, strict=True)]
    dy = torch.randn(1, D, SIDE, SIDE, generator=generator)

    def bundle(weights: tuple[Tensor, ...]) -> Weights:
        w_in, c_in, w_depth, c_depth, w_step, c_step, w_out, c_out = weights
        return Weights(w_in, c_in, w_depth, c_depth, (w_step,), (c_step,), w_out, c_out)

    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        return gnconv(x, bundle(weights), scale=SCALE)

    def definition(x: Tensor, *weights: Tensor) -> Tensor:
        return reference.gnconv(x, bundle(weights), SCALE)[0]

    yield Case(
        name=f"order 2 fwd+bwd, {SIDE} x {SIDE} x {D} float32",
        ours=with_gradients(ours, inputs, dy),
        baselines={"eager": with_gradients(definition, inputs, dy)},
        exact=with_gradients(definition, [tensor.double() for tensor in inputs], dy.double()),
    )
