"""Gated linear attention on a CPU against the token loop, the textbook chunk form and causal softmax attention.

    python benchmarks/kernels_cpu_gla.py [--lengths 256 1024 4096] [--json FILE]

Process time, one thread, B=1 H=4 K=V=64, float32; the sides alternate in one process (A B A B) and the least of the
runs counts. Outputs and gradients are compared with the token loop in float64 first: a wrong form gets no figure. The
loop under autograd is quadratic in T and runs up to ``--loop-until`` only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.kernels.gla import gla

H, D, SCALE = 4, 64, 64**-0.5
Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """A tight loop over tokens: everything that can be is done once for all of them."""
    q, k, v, a = (q * SCALE).unsqueeze(-2), k.unsqueeze(-1), v.unsqueeze(-2), g.exp().unsqueeze(-1)
    state = torch.zeros(q.shape[0], H, D, D)
    outputs = []
    for q_t, k_t, v_t, a_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), a.unbind(1), strict=True):
        state = torch.addcmul(a_t * state, k_t, v_t)
        outputs.append(q_t @ state)
    return torch.stack(outputs, 1).squeeze(-2)


def chunk(q: Tensor, k: Tensor, v: Tensor, g: Tensor, C: int = 64) -> Tensor:
    """The textbook chunk form with plain autograd; valid for mild decays only."""
    B, T, _, _ = q.shape
    q, k, v, g = (x.transpose(1, 2).reshape(B, H, T // C, C, D) for x in (q * SCALE, k, v, g))
    b = g.cumsum(3)
    total = b[:, :, :, -1:]
    query = q * b.exp()
    A = (query @ (k * (-b).exp()).mT).tril()
    updates = (k * (total - b).exp()).mT @ v
    decay = total.exp().mT
    state = torch.zeros(B, H, D, D)
    states = []
    for c in range(T // C):
        states.append(state)
        state = decay[:, :, c] * state + updates[:, :, c]
    return (A @ v + query @ torch.stack(states, 2)).reshape(B, H, T, D).transpose(1, 2)


def softmax(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)


def ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return gla(q, k, v, g)[0]


FORMS: dict[str, Form] = {"ours": ours, "chunk": chunk, "loop": loop, "sdpa": softmax}


def example(T: int, decay: float) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    tensors = [torch.randn(1, T, H, D) for _ in range(4)]
    return [*tensors[:3], -decay * torch.rand(1, T, H, D)], tensors[3]


def training(form: Form, inputs: list[Tensor], do: Tensor) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    o = form(*inputs)
    gradients = torch.autograd.grad(o, inputs, do, allow_unused=True)  # softmax attention has no decays
    return [o.detach(), *(x for x in gradients if x is not None)]


def inference(form: Form, inputs: list[Tensor], do: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [form(*inputs)]


def check(T: int = 192) -> None:
    """Stop unless both forms agree with the loop in float64, ours under strong decays too."""
    for name, decay in (("chunk", 0.1), ("ours", 0.1), ("ours", 5.0), ("ours", 100.0)):
        inputs, do = example(T, decay)
        torch.set_default_dtype(torch.float64)
        exact = training(loop, [x.double() for x in inputs], do.double())
        torch.set_default_dtype(torch.float32)
        got = training(FORMS[name], inputs, do)
        error = max(float((x - y).norm() / y.norm()) for x, y in zip(got, exact, strict=True))
        if not error <= 1e-5:
            raise SystemExit(f"{name} is wrong at decay {decay}: relative error {error:.1e}")


def measure(run: Callable, forms: list[str], T: int, decay: float, seconds: float) -> dict[str, float]:
    """Least milliseconds per form."""
    inputs, do = example(T, decay)
    best = dict.fromkeys(forms, float("inf"))
    began, rounds = time.perf_counter(), 0
    while rounds < 2 or (time.perf_counter() - began < seconds and rounds < 200):
        for form in forms:
            start = time.process_time()
            run(FORMS[form], inputs, do)
            best[form] = min(best[form], 1e3 * (time.process_time() - start))
        rounds += 1
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 4096, 16384])
    parser.add_argument("--loop-until", type=int, default=1024, help="longest T at which the loop is trained")
    parser.add_argument("--seconds", type=float, default=4, help="per row, at least two rounds")
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    check()
    torch.empty(1 << 23).fill_(0)  # the allocator keeps what it has freed from now on, as in any real program

    rows = []
    print(f"{'':>8} {'T':>6} {'ours ms':>9} {'chunk':>8} {'loop':>8} {'sdpa':>8} {'strong decay':>13}")
    for name, run in (("forward", inference), ("training", training)):
        for T in options.lengths:
            forms = [form for form in FORMS if form != "loop" or run is inference or options.loop_until >= T]
            best = measure(run, forms, T, 0.1, options.seconds)
            strong = measure(run, ["ours"], T, 40.0, options.seconds / 4)["ours"]
            ratios = {form: best[form] / best["ours"] if form in best else None for form in ("chunk", "loop", "sdpa")}
            rows.append(
                {"pass": name, "T": T, "ours_ms": best["ours"], **ratios, "strong_decay": strong / best["ours"]}
            )
            shown = " ".join(f"{'-' if ratio is None else f'{ratio:.2f}x':>8}" for ratio in ratios.values())
            print(f"{name:>8} {T:>6} {best['ours']:>9.2f} {shown} {strong / best['ours']:>12.2f}x", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
