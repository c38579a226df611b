"""Backbones against their peers: process time of one thread, in turn in one process, float32, without gradients.

    python benchmarks/backbones.py                        # all comparisons
    python benchmarks/backbones.py 'vig*1024*' --json times.json

Multiply-adds are those of every convolution and matrix product, the products inside attention and inside our operators
included (published counts of ViG leave out the perceptron's second map and the operator). Memory is the peak above the
loaded model, each in a process of its own. The status is 1 where a promised ratio is not kept.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from hornet_plain import PlainHorNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import toolkit.tasks.classify  # noqa: F401, registers our backbones
from toolkit.config import recipe_layers
from toolkit.kernels._common import bench
from toolkit.kernels._common.chunks import CHUNK
from toolkit.tasks.classify.config import ClassifyConfig

CIFAR10 = ("cifar10_vig", "cifar10_deit", "cifar10_hornet", "cifar10_convnext")  # recipes


@dataclass(frozen=True)
class Comparison:
    """One of our models and a peer on the same images.

    Attributes:
        ours: a name of ``MODELS``.
        theirs: the peer's.
        batch: images.
        size: pixels of a side.
        least: how many times faster ours must be; None where nothing is promised.
    """

    ours: str
    theirs: str
    batch: int
    size: int
    least: float | None = None

    @property
    def name(self) -> str:
        return f"{self.ours} / {self.theirs} {self.batch} x {self.size}"


def deit_tiny(size: int, fused: bool) -> nn.Module:
    model = timm.create_model("deit_tiny_patch16_224", img_size=size)
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


def recipe(name: str) -> nn.Module:
    """The model of a recipe for CIFAR-10."""
    config = ClassifyConfig.build(*recipe_layers(name, "classify"))
    return timm.create_model(config.model.name, num_classes=10, **config.model.arguments)


MODELS: dict[str, Callable[[int], nn.Module]] = {  # by name, from the pixels of a side
    "vig_tiny": lambda size: timm.create_model("vig_tiny"),
    "deit_tiny, fused attention": lambda size: deit_tiny(size, fused=True),
    "deit_tiny, materialised attention": lambda size: deit_tiny(size, fused=False),
    "hornet_tiny_7x7": lambda size: timm.create_model("hornet_tiny_7x7"),
    "hornet_tiny_7x7, plain": lambda size: PlainHorNet(timm.create_model("hornet_tiny_7x7")),
    "hornet_tiny_gf": lambda size: timm.create_model("hornet_tiny_gf"),
    "hornet_tiny_gf, plain": lambda size: PlainHorNet(timm.create_model("hornet_tiny_gf")),
    "convnext_tiny": lambda size: timm.create_model("convnext_tiny"),
    **{name: partial(lambda name, size: recipe(name), name) for name in CIFAR10},
}

COMPARISONS = [
    Comparison("vig_tiny", "deit_tiny, fused attention", 1, 224),
    Comparison("vig_tiny", "deit_tiny, fused attention", 8, 224),
    Comparison("vig_tiny", "deit_tiny, fused attention", 1, 1024, least=2.5),
    Comparison("vig_tiny", "deit_tiny, materialised attention", 1, 1024, least=5.6),
    Comparison("hornet_tiny_7x7", "convnext_tiny", 1, 224, least=1.0),
    Comparison("hornet_tiny_7x7", "convnext_tiny", 8, 224, least=1.0),
    Comparison("hornet_tiny_7x7", "hornet_tiny_7x7, plain", 1, 224, least=1.0),
    Comparison("hornet_tiny_7x7", "hornet_tiny_7x7, plain", 8, 224, least=1.0),
    Comparison("hornet_tiny_gf", "convnext_tiny", 1, 224),
    Comparison("hornet_tiny_gf", "convnext_tiny", 8, 224),
    Comparison("hornet_tiny_gf", "hornet_tiny_gf, plain", 1, 224),
    Comparison("hornet_tiny_gf", "hornet_tiny_gf, plain", 8, 224),
    Comparison("cifar10_vig", "cifar10_deit", 64, 32),
    Comparison("cifar10_hornet", "cifar10_convnext", 64, 32),
]


def bidirectional_gla_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """Of the chunked form: per direction states read and written, and scores made and used."""
    B, T, H, K = q
    V = v[-1]
    return B * T * H * (8 * K * V + 4 * CHUNK * (K + V))


def flops_of_ours() -> dict[Any, Callable[..., int]]:
    """Formulas for operators that the counter does not see into."""
    return {
        torch.ops.gated.bidirectional_gla_fwd: bidirectional_gla_flops,
        torch.ops.mkldnn._linear_pointwise: lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0],
    }


def multiply_adds(model: nn.Module, images: Tensor) -> float:
    """In units of 10^9, for the whole batch; attention counted as materialised products, which are the same."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn, before = False, module.fused_attn
            module.fused_before = before
    with FlopCounterMode(display=False, custom_mapping=flops_of_ours()) as counter:
        model(images)
    for module in model.modules():
        if hasattr(module, "fused_before"):
            module.fused_attn = module.fused_before
    return counter.get_total_flops() / 2e9


def seconds(model: nn.Module, images: Tensor) -> float:
    start = time.process_time()
    model(images)
    return time.process_time() - start


def peak_mib(name: str, batch: int, size: int) -> float:
    """Memory of a forward pass above that of the loaded model, measured in a new process."""
    command = [sys.executable, __file__, "--peak-of", name, str(batch), str(size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(name: str, batch: int, size: int) -> None:
    model, images = MODELS[name](size).eval(), torch.randn(batch, 3, size, size)
    print(bench.peak_megabytes(lambda: [model(images)]) * 1e6 / 2**20)


def measure(comparison: Comparison, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    ours, theirs = (MODELS[name](comparison.size).eval() for name in (comparison.ours, comparison.theirs))
    images = torch.randn(comparison.batch, 3, comparison.size, comparison.size)
    counted = [multiply_adds(model, images) for model in (ours, theirs)]  # the first call of each, too
    pairs = [(seconds(ours, images), seconds(theirs, images)) for _ in range(repeats)]
    ratios = [theirs_s / ours_s for ours_s, theirs_s in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "comparison": comparison.name,
        "gmacs": counted,
        "seconds": [statistics.median(column) for column in zip(*pairs, strict=True)],
        "mib": [peak_mib(name, comparison.batch, comparison.size) for name in (comparison.ours, comparison.theirs)],
        "ratio": statistics.median(ratios),
        "quartiles": [low, high],
        "least": comparison.least,
        "repeats": repeats,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"], help="wildcards of comparisons")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of runs per comparison, at least 2")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if args.peak_of:
        name, batch, size = args.peak_of
        print_peak(name, int(batch), int(size))
        return 0

    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}", end="\n\n")
    print(
        "| ours / theirs, images x pixels | 10^9 multiply-adds | core-seconds | MiB | times faster (quartiles) | must |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    rows = []
    for comparison in COMPARISONS:
        if not any(fnmatch.fnmatch(comparison.name, pattern) for pattern in args.patterns):
            continue
        row = measure(comparison, args.repeats)
        rows.append(row)
        (gmacs, their_gmacs), (time_s, their_time_s), (mib, their_mib) = row["gmacs"], row["seconds"], row["mib"]
        low, high = row["quartiles"]
        print(
            f"| {comparison.name} | {gmacs:.2f} / {their_gmacs:.2f} | {time_s:.3f} / {their_time_s:.3f} "
            f"| {mib:.0f} / {their_mib:.0f} | {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {row['least'] or ''} |",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return any(row["least"] and row["ratio"] < row["least"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
