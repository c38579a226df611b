"""CPU times of operators against baselines: process time, one thread for all, alternating in one process.

An operator joins with a file ``kernels/<op>/bench.py`` that defines ``bench_cases()``, a generator of ``Case``. Results
are first compared with the exact ones: a wrong kernel gets no speed figure. It may also define ``memory_case()``, the
``Case`` whose peak memory is of interest.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit import registry
from toolkit.errors import InputError
from toolkit.kernels._common.numerics import relative_error

Computation = Callable[[], Sequence[Tensor]]
PASSES = ("fwd", "fwd+bwd")
LOOPS_UNTIL = (
    4096  # tokens; from here on loops are trained once, in quadratic time: each token's gradient has full size
)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: what is computed, with sizes and type.
        ours: the operator; returns outputs and gradients.
        baselines: by name, what it is compared with.
        exact: what ``ours`` should return, e.g. the definition in float64.
        tolerance: greatest relative error of each tensor.
        most: the time that is promised, as a multiple of a baseline's, by that baseline's name.
        once: baselines that take so long that one run has to do.
        series: what cases of several lengths have in common, to compare their times; empty for none.
        length: of the sequences, in a series.
    """

    name: str
    ours: Computation
    baselines: Mapping[str, Computation]
    exact: Computation
    tolerance: float = 1e-5
    most: Mapping[str, float] = field(default_factory=dict)
    once: Collection[str] = ()
    series: str = ""
    length: int = 0


def with_gradients(function: Callable[..., Any], inputs: Sequence[Tensor], *grads: Tensor) -> Computation:
    """A computation that returns the outputs of ``function(*inputs)`` and the gradients of all inputs for ``grads``."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]

    def compute() -> list[Tensor]:
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]

    return compute


def forward_only(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Computation:
    def compute() -> list[Tensor]:
        with torch.no_grad():
            return [function(*inputs)]

    return compute


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of ``[B, T, H, D]``, what operators over sequences are an alternative to."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def sequence_case(
    passes: str,
    inputs: Sequence[Tensor],
    do: Tensor,
    ours: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    chunks: tuple[str, Callable[..., Tensor]],
    loops: Mapping[str, Callable[..., Tensor]],
    most: Mapping[str, float],
    slow_chunks: bool = False,
) -> Case:
    """An operator over sequences against a textbook chunk form, loops over tokens, and softmax attention.

    Args:
        passes: of ``PASSES``.
        inputs: q, k, v ``[B, T, H, D]``, then the others.
        do: gradient of the output.
        definition: what float64 results come from, but for long training, where a loop would take too long.
        chunks: name and computation; it is the first baseline.
        loops: measured up to ``LOOPS_UNTIL`` tokens.
        slow_chunks: beyond that the chunk form is measured once, as attention is.
    """
    T, training = inputs[0].shape[1], passes == "fwd+bwd"
    quadratic = training and T >= LOOPS_UNTIL

    def computation(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Computation:
        return with_gradients(function, inputs, do.to(inputs[0])) if training else forward_only(function, inputs)

    long = T > LOOPS_UNTIL
    names = {chunks[0]: chunks[1], **({} if long else loops)}
    baselines = {name: computation(function, inputs) for name, function in names.items()}
    baselines["sdpa"] = computation(causal_attention, inputs[:3])
    once = [*(loops if quadratic else ()), *(["sdpa"] if long else ()), *([chunks[0]] if long and slow_chunks else ())]
    return Case(
        name=f"{passes}, T={T}",
        ours=computation(ours, inputs),
        baselines=baselines,
        exact=computation(chunks[1] if quadratic else definition, [x.double() for x in inputs]),
        most=most,
        once=once,
        series=passes,
        length=T,
    )


def run(op: str | None = None, repeats: int = 9) -> list[dict[str, Any]]:
    """Measure the cases of one operator, or of all that have some.

    Returns:
        A mapping per case and baseline: ``op``, ``case``, ``against``, ``error`` (largest of all tensors), ``ours_ms``
        and ``theirs_ms`` (medians), ``ratio`` (median of ours / theirs, pair by pair), ``spread`` (the quartiles of
        that ratio), ``most``, ``repeats``, ``series`` and ``length``. A case with wrong results has ``error`` and
        ``tolerance`` only.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [{"op": name, **row} for name, case in _cases(op) for row in _measure(case, repeats)]
    finally:
        torch.set_num_threads(threads)


def _cases(op: str | None) -> Iterator[tuple[str, Case]]:
    for name in [registry.kernels.entry(op).name] if op else registry.kernels.names():
        module = f"toolkit.kernels.{name}.bench"
        if importlib.util.find_spec(module):
            for case in importlib.import_module(module).bench_cases():
                yield name, case
        elif op:
            raise InputError(f"{name} has no benchmark", f"Define bench_cases() in kernels/{name}/bench.py")


def _measure(case: Case, repeats: int) -> list[dict[str, Any]]:
    error = max(relative_error(got, want) for got, want in zip(case.ours(), case.exact(), strict=True))
    if not error <= case.tolerance:
        return [{"case": case.name, "error": error, "tolerance": case.tolerance}]
    return [{"case": case.name, "error": error, **row} for row in _compare(case, repeats)]


def _compare(case: Case, repeats: int) -> Iterator[dict[str, Any]]:
    for name, theirs in case.baselines.items():
        pairs_of_runs = 1 if name in case.once else repeats
        if name not in case.once:
            theirs()  # warm, as ours is
        pairs = [(_milliseconds(case.ours), _milliseconds(theirs)) for _ in range(pairs_of_runs)]
        ratios = [ours / other for ours, other in pairs]
        low, ratio, high = statistics.quantiles(ratios, n=4) if len(pairs) > 1 else ratios * 3
        yield {
            "against": name,
            "ours_ms": statistics.median(ours for ours, _ in pairs),
            "theirs_ms": statistics.median(other for _, other in pairs),
            "ratio": ratio,
            "spread": [low, high],
            "most": case.most.get(name),
            "repeats": len(pairs),
            "series": case.series,
            "length": case.length,
        }


def _milliseconds(computation: Computation) -> float:
    started = time.process_time()
    computation()
    return 1e3 * (time.process_time() - started)


def growth(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How our times of each series grow from a length to four times that length, a line each."""
    times: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row.get("series"):
            of_length = times.setdefault((row["op"], row["series"]), {})
            of_length[row["length"]] = min(row["ours_ms"], of_length.get(row["length"], row["ours_ms"]))
    return [
        f"{op}: {series}, T={4 * length:,} takes {of_length[4 * length] / time:.2f} times T={length:,}"
        for (op, series), of_length in times.items()
        for length, time in of_length.items()
        if 4 * length in of_length
    ]


def peak_megabytes(computation: Computation) -> float:
    """Greatest memory of this process during a call, above the level before it. Linux only: it reads /proc."""

    def memory(name: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{name}:")[1].split()[0]) * 1024

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = memory("VmRSS")
        results = computation()
        peak = memory("VmHWM") - before
        del results
    finally:
        torch.set_num_threads(threads)
    return peak / 1e6


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong in the rows of ``run``, a line each: wrong results, and times over the promise."""
    found = []
    for row in rows:
        if "ratio" not in row:
            found.append(f"{row['op']}: {row['case']}: error {row['error']:.1e} > {row['tolerance']:.0e}: not measured")
        elif row["most"] is not None and row["ratio"] > row["most"]:
            found.append(f"{row['op']}: {row['case']}: {row['ratio']:.2f} of {row['against']}, promised {row['most']}")
    return found
