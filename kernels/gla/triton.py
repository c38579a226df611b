"""Gated linear attention on a GPU, in one direction of time or, for ``bidirectional_gla``, in both at once.

Two launches forward: the states that enter each chunk, then the outputs, chunk by chunk. Three backward: those states
again together with their gradients, then the gradient of v, then those of q, k and the gates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from toolkit.kernels._common.gated_chunks.triton import chunk_kernel, gradients_kernel, states_kernel

C = 32  # tokens of a chunk; with 64 the gradients of q, k and the gates spill
LEVELS = 5  # 2^LEVELS = C
# Greatest BK and BV. No product has 64 rows: with them compilers for Hopper have got operands from registers wrong.
TILES = {"states": (32, 64), "chunk": (64, 64), "gradients": (32, 32)}
STAGES = {"states": 2, "chunk": 1, "gradients": 1}


def forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, final states, and nothing for the backward, which computes the states again."""
    last = _new_states(q, v, cu_seqlens)
    o = outputs(q, k, v, [g], initial_state, last, cu_seqlens, scale)
    return o, last, last.new_empty(0)


def backward(
    do: Tensor | None,
    dlast: Tensor | None,
    saved: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> list[Tensor]:
    """Gradients of q, k, v, g and of the initial states, if there are any."""
    do = torch.zeros_like(v) if do is None else do
    dfirst = None if initial_state is None else torch.empty_like(initial_state, memory_format=torch.contiguous_format)
    results = gradients(do, q, k, v, [g], initial_state, dlast, dfirst, cu_seqlens, scale)
    return results if dfirst is None else [*results, dfirst]


def outputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Tensor],
    first: Tensor | None,
    last: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> Tensor:
    """The sum over directions of their outputs; ``last`` receives the final states."""
    launch = _Launch(q, k, v, gates, cu_seqlens, scale)
    o = torch.empty_like(launch.v, dtype=v.dtype)
    states = launch.states(None, first, last, None, None)
    launch.chunks(launch.v, states, o, transposed=False)
    return o


def gradients(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Tensor],
    first: Tensor | None,
    dlast: Tensor | None,
    dfirst: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> list[Tensor]:
    """Gradients of q, k, v and the gates; ``dfirst`` receives those of the initial states."""
    launch = _Launch(q, k, v, gates, cu_seqlens, scale)
    do = do.to(launch.v.dtype).contiguous()
    dq, dk, dv, *dgates = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, *gates))
    states, dstates = launch.states(do, first, None, dfirst, dlast).split(len(gates))
    launch.chunks(do, dstates, dv, transposed=True)
    launch.gradients(do, states, dstates, dq, dk, dgates)
    return [dq, dk, dv, *dgates]


def _new_states(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    S = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return q.new_empty(S, *q.shape[2:], v.shape[-1], dtype=torch.float32)


class _Launch:
    """The three kernels on one set of inputs: q, k and v of one type, the gates of one type, all contiguous."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Sequence[Tensor], cu_seqlens: Tensor | None, scale: float
    ):
        self.q, self.k, self.v = _alike(q, k, v)
        self.gates = _alike(*gates)
        self.g0, self.g1 = (*self.gates, None)[:2]
        self.scale = scale
        self.B, self.T, self.H, self.K = q.shape
        self.V = v.shape[-1]
        self.per_sequence = triton.cdiv(self.T, C)
        self.number = self.B * self.per_sequence
        self.sequences = self.B
        self.bounds: Tensor | None = None
        self.chunks_before: Tensor | None = None
        self.starts: Tensor | None = None
        self.ends: Tensor | None = None
        if cu_seqlens is not None:
            self.sequences = cu_seqlens.shape[0] - 1
            self.number = self.T // C + self.sequences  # at least as many as there are: each sequence has one short
            self._cut(cu_seqlens)

    def _config(self, kernel: str) -> dict[str, Any]:
        return _config(kernel, self.q.dtype, self.K, self.V, len(self.gates))

    def _cut(self, cu_seqlens: Tensor) -> None:
        """Where chunks of packed sequences stand, found on the device. Those beyond the last are empty."""
        bounds = cu_seqlens.to(self.q.device, torch.int64)
        chunks = (bounds.diff() + C - 1) // C
        beyond = chunks.cumsum(0)
        before = beyond - chunks
        chunk = torch.arange(self.number, device=self.q.device)
        sequence = torch.searchsorted(beyond, chunk, right=True)
        exists = sequence < self.sequences
        sequence = sequence.clamp(max=self.sequences - 1)
        self.bounds, self.chunks_before = bounds, before
        self.starts = bounds[sequence] + (chunk - before[sequence]) * C
        self.ends = torch.where(exists, bounds[sequence + 1], 0)

    def states(
        self, do: Tensor | None, first: Tensor | None, last: Tensor | None, dfirst: Tensor | None, dlast: Tensor | None
    ) -> Tensor:
        """States that enter chunks, ``[kinds, chunks, H, K, V]``: each direction's, then (with do) their gradients."""
        kinds = len(self.gates) * (1 if do is None else 2)
        config = self._config("states")
        # The products would round states to bf16 at any rate.
        dtype = torch.bfloat16 if config["DOT"] == tl.bfloat16 else torch.float32
        states = self.q.new_empty(kinds, self.number, self.H, self.K, self.V, dtype=dtype)
        first, dlast = (None if x is None else x.contiguous() for x in (first, dlast))
        tiles = triton.cdiv(self.K, config["BK"]) * triton.cdiv(self.V, config["BV"])
        if self.sequences:
            states_kernel[self.sequences * self.H, tiles, kinds](
                self.q, self.k, self.v, do, self.g0, self.g1, first, last, dfirst, dlast, states,
                self.bounds, self.chunks_before, self.T, self.per_sequence, self.number, self.H, self.scale,
                GRADIENT=do is not None, **config,
            )  # fmt: skip
        return states

    def chunks(self, v: Tensor, states: Tensor, o: Tensor, transposed: bool) -> None:
        if self.number:
            chunk_kernel[self.number, self.H](
                self.q, self.k, v, self.g0, self.g1, states, o, self.starts, self.ends,
                self.T, self.per_sequence, self.number, self.H, self.scale,
                TRANSPOSED=transposed, **self._config("chunk"),
            )  # fmt: skip

    def gradients(
        self, do: Tensor, states: Tensor, dstates: Tensor, dq: Tensor, dk: Tensor, dgates: Sequence[Tensor]
    ) -> None:
        config = self._config("gradients")
        if self.number:
            gradients_kernel[self.number, self.H, triton.cdiv(self.K, config["BK"])](
                self.q, self.k, self.v, self.g0, self.g1, do, states, dstates, dq, dk, *(*dgates, None)[:2],
                self.starts, self.ends, self.T, self.per_sequence, self.number, self.H, self.scale, **config,
            )  # fmt: skip


def _alike(*tensors: Tensor) -> list[Tensor]:
    """Contiguous and of one type, that of the widest."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def _config(
    kernel: str, dtype: torch.dtype, K: int, V: int, sides: int, amd: bool = torch.version.hip is not None
) -> dict[str, Any]:
    """Constants of one of the kernels and how it is compiled.

    float32 keeps its digits: on tensor cores as three products of tf32, which take twice the registers. fp16 has the
    digits of tf32, which cannot overflow where fp16 would.
    """
    exact, interpreted = dtype == torch.float32, triton.knobs.runtime.interpret
    bf16 = dtype == torch.bfloat16 and not interpreted  # the interpreter cannot compute in bf16
    BK, BV = TILES[kernel]
    if kernel != "states" and exact:
        BK, BV = BK // 2, BV // 2
    elif kernel == "gradients" and sides == 2:
        BK //= 2
    if interpreted:
        BK = BV = 64  # its time goes by operations, not by their size
    BK, BV = (min(most, max(16, triton.next_power_of_2(width))) for most, width in ((BK, K), (BV, V)))
    config = {"K": K, "V": V, "C": C, "BK": BK, "BV": BV, "DOT": tl.bfloat16 if bf16 else tl.float32}
    config |= {"PRECISION": "ieee" if amd else "tf32x3" if exact else "tf32"}
    # With more than 4 warps a thread on AMD has half the registers; three products of tf32 gain nothing by them.
    warps = 8 if kernel == "gradients" and sides == 2 and not amd and not exact else 4
    config |= {"num_warps": warps, "num_stages": STAGES[kernel]}
    return config if kernel == "states" else config | {"LEVELS": LEVELS}


def aot_cases(sides: int = 1) -> Iterator[dict[str, Any]]:
    """What the two passes launch, with and without packing, at common widths and at the greatest."""
    for dtype, K, V, packed in (
        (torch.bfloat16, 32, 64, False),
        (torch.bfloat16, 64, 64, True),
        (torch.bfloat16, 128, 128, False),
        (torch.float16, 64, 64, False),
        (torch.float32, 64, 64, False),
        (torch.float32, 256, 512, True),
    ):
        for amd, targets in ((False, ["sm_80", "sm_90"]), (True, ["gfx942"])):
            for name, kernel, constants in (
                ("states fwd", states_kernel, {"GRADIENT": False}),
                ("states bwd", states_kernel, {"GRADIENT": True}),
                ("o", chunk_kernel, {"TRANSPOSED": False}),
                ("dv", chunk_kernel, {"TRANSPOSED": True}),
                ("dq dk dg", gradients_kernel, {}),
            ):
                yield _aot_case(name, kernel, constants, dtype, K, V, packed, sides, amd) | {"targets": targets}


def _aot_case(
    name: str, kernel: Any, constants: dict[str, bool], dtype: torch.dtype, K: int, V: int, packed: bool, sides: int,
    amd: bool,
) -> dict[str, Any]:  # fmt: skip
    config = _config({states_kernel: "states", chunk_kernel: "chunk"}.get(kernel, "gradients"), dtype, K, V, sides, amd)
    options = {key: config.pop(key) for key in ("num_warps", "num_stages")}
    short = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    states = "bf16" if dtype == torch.bfloat16 else "fp32"
    absent = ["g1", "dg1"] if sides == 1 else ["first", "last", "dfirst", "dlast"]
    absent += [] if packed else ["bounds", "chunks_before", "starts", "ends"]
    if kernel is states_kernel:
        absent += ["last"] if constants["GRADIENT"] else ["do", "dfirst", "dlast"]
    types = dict.fromkeys(("q", "k", "v", "do", "o", "dq", "dk"), f"*{short}")
    types |= dict.fromkeys(("g0", "g1", "dg0", "dg1", "first", "last", "dfirst", "dlast"), "*fp32")
    types |= dict.fromkeys(("states", "dstates"), f"*{states}")
    types |= dict.fromkeys(("bounds", "chunks_before", "starts", "ends"), "*i64")
    types |= dict.fromkeys(("T", "NC", "NC_ALL", "H"), "i32") | {"scale": "fp32"}
    return {
        "name": f"{name} {short} {K}x{V}{' packed' if packed else ''}",
        "fn": kernel,
        "signature": {name: types[name] for name in kernel.arg_names if name in types and name not in absent},
        "constexprs": config | constants | {name: None for name in absent if name in kernel.arg_names},
        "options": options,
    }
