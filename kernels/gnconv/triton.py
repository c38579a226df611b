"""The gating chain on a GPU: the 1x1 convolution of a step with the product as its epilogue, forward and backward.

What has no epilogue (the first product, and the gradients that are plain matrix products) is the library's.

Legend: B batch, N pixels of an image, w and w' channels before and after a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from toolkit.kernels._common.triton import dot_cases, dot_options, load_float32, store_rounded

# Channels BM and pixels BN of a tile; channels BK of one step of the sum.
CONFIG = {"BM": 32, "BN": 64, "BK": 16, "num_warps": 4, "num_stages": 2}


@triton.jit
def _mixed(
    p, weight, bias, image, channel, pixel, w_in, w_out, N,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``z = W p + c`` at some channels and pixels of an image, ``[BM, BN]``."""
    z = tl.zeros([BM, BN], tl.float32)
    for k0 in range(0, w_in, BK):
        k = k0 + tl.arange(0, BK)
        inside = (channel < w_out)[:, None] & (k < w_in)[None, :]
        weights = load_float32(weight, channel[:, None] * w_in + k[None, :], inside)
        inside = (k < w_in)[:, None] & (pixel < N)[None, :]
        values = load_float32(p, (image * w_in + k[:, None]) * N + pixel[None, :], inside)
        z += tl.dot(weights.to(DOT), values.to(DOT), input_precision=PRECISION)
    return z + load_float32(bias, channel, channel < w_out)[:, None]


@triton.jit
def _tile(w_out, N, BM: tl.constexpr, BN: tl.constexpr):
    """Image, channels and pixels of this program, and which exist."""
    tiles = tl.cdiv(N, BN)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    channel = tl.program_id(1) * BM + tl.arange(0, BM)
    return image, channel, pixel, (channel < w_out)[:, None] & (pixel < N)[None, :]


@triton.jit
def _step_fwd_kernel(
    p, weight, bias, b, out, first, w_all, w_in, w_out, N,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``(W p + c) * b`` with the factors at channels ``first`` and on of b's ``w_all``."""
    image, channel, pixel, inside = _tile(w_out, N, BM, BN)
    z = _mixed(p, weight, bias, image, channel, pixel, w_in, w_out, N, BM, BN, BK, DOT, PRECISION)
    factor = load_float32(b, (image * w_all + first + channel[:, None]) * N + pixel[None, :], inside)
    store_rounded(out, (image * w_out + channel[:, None]) * N + pixel[None, :], z * factor, inside)


@triton.jit
def _step_bwd_kernel(
    dout, p, weight, bias, b, db, dz, first, w_all, w_in, w_out, N,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the step's factors and of its 1x1 convolution, which is computed again."""
    image, channel, pixel, inside = _tile(w_out, N, BM, BN)
    z = _mixed(p, weight, bias, image, channel, pixel, w_in, w_out, N, BM, BN, BK, DOT, PRECISION)
    own = (image * w_out + channel[:, None]) * N + pixel[None, :]
    shared = (image * w_all + first + channel[:, None]) * N + pixel[None, :]
    d = load_float32(dout, own, inside)
    store_rounded(dz, own, d * load_float32(b, shared, inside), inside)
    store_rounded(db, shared, d * z, inside)


def chain(a: Tensor, b: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """See ``reference.gated_recursion``; the tensors are contiguous."""
    (B, first), N, w_all = a.shape[:2], a[0, 0].numel() if a.numel() else 0, b.shape[1]
    steps = [(a * b[:, :first]).to(a.dtype)]
    for weight, bias in zip(weights, biases, strict=True):
        p, w = steps[-1], weight.shape[0]
        out = torch.empty(B, w, *a.shape[2:], dtype=a.dtype, device=a.device)
        if N:
            _step_fwd_kernel[_grid(B, N, w)](
                p, weight, bias, b, out, first, w_all, weight.shape[1], w, N, **CONFIG, **dot_options(a.dtype)
            )
        steps.append(out)
        first += w
    return steps


def chain_backward(
    dsteps: Sequence[Tensor | None],
    a: Tensor,
    b: Tensor,
    steps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of a, b, the weights, then the biases; the last two in float32."""
    (B, w0), N, first = a.shape[:2], a[0, 0].numel() if a.numel() else 0, b.shape[1]
    db = torch.empty_like(b)
    dweights: list[Tensor] = []
    dbiases: list[Tensor] = []
    dp = torch.zeros_like(steps[-1]) if dsteps[-1] is None else dsteps[-1]
    for i in range(len(weights) - 1, -1, -1):
        weight, p = weights[i], steps[i]
        w, w_in = weight.shape[:2]
        first -= w
        dz = torch.empty_like(steps[i + 1])
        if N:
            _step_bwd_kernel[_grid(B, N, w)](
                dp.contiguous(), p, weight, biases[i], b, db, dz, first, b.shape[1], w_in, w, N,
                **CONFIG, **dot_options(a.dtype),
            )  # fmt: skip
        flat = dz.flatten(2)
        dweights.insert(0, torch.bmm(flat, p.flatten(2).mT).float().sum(0).view(weight.shape))
        dbiases.insert(0, flat.sum((0, 2), dtype=torch.float32))
        dp = torch.matmul(weight.flatten(1).t().to(flat.dtype), flat).view(p.shape)
        dp = dp if (direct := dsteps[i]) is None else dp.add_(direct)
    torch.mul(dp, a, out=db[:, :w0])
    return [dp * b[:, :w0], db, *dweights, *dbiases]


def _grid(B: int, N: int, w: int) -> tuple[int, int]:
    return B * triton.cdiv(N, CONFIG["BN"]), triton.cdiv(w, CONFIG["BM"])


def aot_cases() -> Iterator[dict[str, Any]]:
    """Every specialisation that ``chain`` and ``chain_backward`` launch, in bf16 and float32."""
    constants = {name: CONFIG[name] for name in ("BM", "BN", "BK")}
    sizes = ("first", "w_all", "w_in", "w_out", "N")
    for dtype, dot, targets in dot_cases():
        for fn in (_step_fwd_kernel, _step_bwd_kernel):
            tensors = [name for name in fn.arg_names if name not in (*sizes, *constants, *dot)]
            yield {
                "name": f"step {'fwd' if fn is _step_fwd_kernel else 'bwd'} {dtype}",
                "fn": fn,
                "signature": {**dict.fromkeys(tensors, f"*{dtype}"), **dict.fromkeys(sizes, "i32")},
                "constexprs": {**constants, **dot},
                "options": {"num_warps": CONFIG["num_warps"], "num_stages": CONFIG["num_stages"]},
                "targets": targets,
            }
