"""Bidirectional gated linear attention in chunks against its definition in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels import bidirectional_gla as operator
from toolkit.kernels._common import chunks, gated_scan
from toolkit.kernels.bidirectional_gla import bidirectional_gla, reference
from toolkit.kernels.gla import gla


@pytest.fixture(autouse=True)
def _one_thread():
    """Small products gain nothing from a second thread, and lose much where it is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def example(B=2, T=70, H=2, K=8, V=12, decay=1.0) -> list[Tensor]:
    widths = (K, K, V, K, K)
    tensors = [torch.randn(B, T, H, width) for width in widths]
    tensors[3:] = -decay * torch.rand(B, T, H, K), -decay * torch.rand(B, T, H, K)
    return [x.requires_grad_() for x in tensors]


def results(inputs: list[Tensor], bounds: list[int] | None = None, **options) -> list[Tensor]:
    """The output, and the gradients for a drawn gradient of it."""
    o = bidirectional_gla(*inputs, cu_seqlens=None if bounds is None else torch.tensor(bounds), **options)
    do = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
    return [o.detach(), *torch.autograd.grad((o * do).sum(), inputs)]


def check(inputs: list[Tensor], bounds: list[int] | None = None, tolerance: float = 2e-6) -> None:
    got = results(inputs, bounds)
    exact = results([x.detach().double().requires_grad_() for x in inputs], bounds)
    assert all(x.isfinite().all() for x in got)
    names = ("o", "dq", "dk", "dv", "dg_forward", "dg_backward")
    measured = {
        name: float((x.double() - y).norm() / y.norm().clamp_min(1e-30))
        for name, x, y in zip(names, got, exact, strict=True)
    }
    assert max(measured.values()) <= tolerance, measured


@pytest.mark.parametrize("T", [1, 2, 31, 32, 33, 64, 196])
def test_lengths(T: int) -> None:
    check(example(T=T))


def test_several_tiles(monkeypatch) -> None:
    monkeypatch.setattr(chunks, "TILE", 64)
    check(example(T=200))
    check(example(B=1, T=200), [0, 3, 90, 90, 200])


@pytest.mark.parametrize(("K", "V"), [(1, 1), (40, 16), (100, 24)])
def test_widths(K: int, V: int) -> None:
    check(example(K=K, V=V, T=41, B=1, H=1))


@pytest.mark.parametrize("total", [40, 119, 121, 175, 400, 4000])
def test_uniform_decays(total: float) -> None:
    inputs = example()
    with torch.no_grad():
        inputs[3].fill_(-total / chunks.CHUNK)
        inputs[4].fill_(-2 * total / chunks.CHUNK)
    check(inputs, tolerance=5e-6)


@pytest.mark.parametrize("decay", [40.0, 1e30])
def test_strong_decays(decay: float) -> None:
    check(example(decay=decay))


@pytest.mark.parametrize("chunk", [8, 64])
@pytest.mark.parametrize("form", ["auto", "dyadic"])
def test_chunk_length_and_form_do_not_matter(chunk: int, form: str, monkeypatch) -> None:
    inputs = example(T=150)
    monkeypatch.setattr(chunks, "chunk_length", lambda T, S: chunk)
    chosen = gated_scan.decays
    monkeypatch.setattr(gated_scan, "decays", lambda *args: chosen(*args[:-1], form))
    check(inputs)


@pytest.mark.parametrize("bounds", [[0, 5, 6, 40, 61], [0, 0, 61, 61], [0, 33, 61]])
def test_packed_equals_separate(bounds: list[int]) -> None:
    inputs = example(B=1, T=61)
    check(inputs, bounds)
    parts = [bidirectional_gla(*(x[:, b:e] for x in inputs)) for b, e in pairwise(bounds)]
    o = bidirectional_gla(*inputs, cu_seqlens=torch.tensor(bounds))
    torch.testing.assert_close(o, torch.cat(parts, 1), rtol=1e-5, atol=1e-5)


def test_it_is_the_mean_of_two_runs() -> None:
    q, k, v, g_forward, g_backward = (x.detach() for x in example())
    forward = gla(q, k, v, g_forward)[0]
    backward = gla(*(x.flip(1) for x in (q, k, v, g_backward)))[0].flip(1)
    o = bidirectional_gla(q, k, v, g_forward, g_backward)
    torch.testing.assert_close(o, (forward + backward) / 2, rtol=1e-5, atol=1e-5)


def test_reversal_of_time_with_equal_gates() -> None:
    q, k, v, g, _ = (x.detach() for x in example())
    o = bidirectional_gla(q, k, v, g, g)
    reverse = bidirectional_gla(*(x.flip(1) for x in (q, k, v, g, g))).flip(1)
    torch.testing.assert_close(o, reverse, rtol=1e-5, atol=1e-5)


def test_erasing_both_ways_separates_the_tokens() -> None:
    inputs = example()
    with torch.no_grad():
        inputs[3][:, 30] = inputs[4][:, 29] = -torch.inf
    o = bidirectional_gla(*inputs)
    gradients = torch.autograd.grad(o[:, 30:].sum(), inputs)
    assert all(x.isfinite().all() and not x[:, :30].any() for x in gradients)
    torch.testing.assert_close(o[:, 30:], bidirectional_gla(*(x[:, 30:] for x in inputs)), rtol=1e-5, atol=1e-5)


def test_batch_walked_in_groups(monkeypatch) -> None:
    monkeypatch.setattr(chunks, "GROUP", 40 * 2 * 12 * 2)
    check(example(B=5, T=40))


def test_layouts() -> None:
    inputs = example(B=3, T=40)
    transposed = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs]
    torch.testing.assert_close(results(transposed), results(inputs))
    q, k, v, g, _ = (x.detach() for x in inputs)
    one_gate = g[:1, :, :1, :1].expand_as(g)
    o = bidirectional_gla(q, k, v, one_gate, one_gate)
    torch.testing.assert_close(o, bidirectional_gla(q, k, v, one_gate.contiguous(), one_gate.contiguous()))


def test_bfloat16() -> None:
    inputs = [x.detach().bfloat16().requires_grad_() for x in example(T=100)]
    assert all(x.dtype == torch.bfloat16 for x in results(inputs))
    check(inputs, tolerance=1e-2)


@pytest.mark.parametrize("wanted", range(5))
def test_gradient_of_one_input(wanted: int) -> None:
    inputs = [x.detach() for x in example()]
    inputs[wanted].requires_grad_()
    runs = [bidirectional_gla(*inputs, backend=backend) for backend in ("torch", "reference")]
    gradients = [torch.autograd.grad(o.square().sum(), inputs[wanted])[0] for o in runs]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_to_do(shape: tuple[int, int]) -> None:
    assert results(example(*shape))[0].shape == (*shape, 2, 12)


@pytest.mark.parametrize("packed", [None, [0, 3, 3, 7]])
def test_gradcheck_of_the_definition(packed: list[int] | None) -> None:
    bounds = None if packed is None else torch.tensor(packed)
    inputs = [x.detach().double().requires_grad_() for x in example(1, 7, 1, 3, 2)]
    assert torch.autograd.gradcheck(lambda *x: reference.bidirectional_gla(*x, bounds, 0.5), inputs)


@pytest.mark.parametrize("name", ["g_forward", "g_backward"])
def test_errors(name: str) -> None:
    arguments = dict(zip(("q", "k", "v", "g_forward", "g_backward"), (x.detach() for x in example()), strict=True))
    with pytest.raises(InputError, match=rf"{name} has shape \[2, 69, 2, 8\]"):
        bidirectional_gla(**arguments | {name: arguments[name][:, 1:]})


def test_operator_check() -> None:
    torch.library.opcheck(operator._forward, (*example(1, 5, 2, 4, 6), None, 0.5, "torch"))


def test_compile_and_export() -> None:
    inputs = example()

    def run(*inputs: Tensor) -> Tensor:
        return bidirectional_gla(*inputs).square().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(form(*inputs), inputs) for form in (run, compiled)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)

    class Layer(torch.nn.Module):
        def forward(self, q, k, v, g_forward, g_backward):
            return bidirectional_gla(q, k, v, g_forward, g_backward)

    time = torch.export.Dim("time", min=2, max=4096)
    arguments = tuple(x.detach() for x in inputs)
    exported = torch.export.export(Layer(), arguments, dynamic_shapes=({1: time},) * 5)
    longer = [x.detach() for x in example(T=133)]
    torch.testing.assert_close(exported.module()(*longer), bidirectional_gla(*longer))
