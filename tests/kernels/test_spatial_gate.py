"""The spatial gating unit in tiles against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels.spatial_gate import cpu, reference, spatial_gate

EPS = 1e-6


def example(B=2, G=5, P=6, C=4, axis=1, dtype=torch.float32) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    n = (G, P)[axis - 1]
    shapes = (B, G, P, 2 * C), (n, n), (n,), (C,), (C,)
    return [torch.randn(s, generator=draws).to(dtype).requires_grad_() for s in shapes]


def results(inputs: list[Tensor], axis: int, **options) -> list[Tensor]:
    y = spatial_gate(*inputs, axis=axis, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def check(inputs: list[Tensor], axis: int, tolerance: float = 2e-6) -> None:
    exact = results([x.detach().double().requires_grad_() for x in inputs], axis)
    for got, true in zip(results(inputs, axis), exact, strict=True):
        assert got.isfinite().all()
        assert (got - true).norm() <= tolerance * true.norm().clamp_min(1e-30)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("sizes", [(2, 5, 6, 4), (1, 16, 9, 12), (3, 1, 7, 5), (3, 7, 1, 5), (1, 1, 1, 3)])
@pytest.mark.parametrize("tile", [1, 60, 1 << 16])
def test_fast_equals_definition(axis: int, sizes: tuple[int, ...], tile: int, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "TILE", tile)
    check(example(*sizes, axis=axis), axis)


@pytest.mark.parametrize("axis", [1, 2])
def test_one_channel_is_gated_by_the_bias_alone(axis: int) -> None:
    x, kernel, bias, weight, shift = (t.detach() for t in example(C=1, axis=axis))
    y = spatial_gate(x, kernel, bias, weight, torch.zeros_like(shift), axis=axis)
    gate = (bias + 1).view(-1, 1, 1) if axis == 1 else (bias + 1).view(-1, 1)
    torch.testing.assert_close(y, x[..., :1] * gate)


@pytest.mark.parametrize("axis", [1, 2])
def test_groups_do_not_mix(axis: int) -> None:
    x, *weights = (t.detach() for t in example(axis=axis))
    y = spatial_gate(x, *weights, axis=axis)
    for i in range(x.shape[3 - axis]):
        alone = x.narrow(3 - axis, i, 1)
        torch.testing.assert_close(spatial_gate(alone, *weights, axis=axis), y.narrow(3 - axis, i, 1))


@pytest.mark.parametrize("axis", [1, 2])
def test_gradcheck_twice(axis: int) -> None:
    inputs = example(1, 2, 3, 2, axis, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: reference.spatial_gate(*t, axis, 1e-2), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: reference.spatial_gate(*t, axis, 1e-2), inputs)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(axis: int, dtype: torch.dtype) -> None:
    inputs = example(2, 16, 9, 12, axis, dtype)
    got = results(inputs, axis)
    assert all(x.dtype == dtype for x in got)
    exact = results([x.detach().double().requires_grad_() for x in inputs], axis)
    for value, true in zip(got, exact, strict=True):
        assert (value.double() - true).norm() <= 5e-3 * true.norm()
    mixed = [inputs[0], *(x.detach().float().requires_grad_() for x in inputs[1:])]
    assert [x.dtype for x in results(mixed, axis)] == [dtype, dtype] + [torch.float32] * 4


@pytest.mark.parametrize("axis", [1, 2])
def test_layouts(axis: int) -> None:
    x, *weights = example(axis=axis)
    exact = results([x, *weights], axis)
    strided = x.detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    kernel = weights[0].detach().t().contiguous().t().requires_grad_()
    torch.testing.assert_close(results([strided, kernel, *weights[1:]], axis), exact)
    one = x[:1].detach().expand(3, -1, -1, -1)
    torch.testing.assert_close(spatial_gate(one, *weights, axis=axis), spatial_gate(one.clone(), *weights, axis=axis))
    y = spatial_gate(x, *weights, axis=axis)
    ones = torch.ones(()).expand_as(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, x, ones, retain_graph=True), torch.autograd.grad(y, x, ones.contiguous())
    )


@pytest.mark.parametrize("shape", [(0, 5, 6), (2, 5, 0)])
def test_nothing_to_do(shape: tuple[int, int, int]) -> None:
    inputs = example(*shape)
    y, dx, *sums = results(inputs, 1)
    assert y.shape == (*shape, 4)
    assert dx.shape == inputs[0].shape
    assert not any(total.any() for total in sums)


@pytest.mark.parametrize("wanted", range(5))
def test_gradient_of_one_input(wanted: int) -> None:
    inputs = [x.detach() for x in example()]
    inputs[wanted].requires_grad_()
    runs = [spatial_gate(*inputs, axis=1, backend=b).square().sum() for b in ("torch", "reference")]
    torch.testing.assert_close(*(torch.autograd.grad(y, inputs[wanted]) for y in runs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 5, 6, 7)}, r"x has shape \[2, 5, 6, 7\]"),
        ({"axis": 3}, "axis is 3"),
        ({"axis": 2}, r"kernel has shape \[5, 5\], not \[6, 6\]"),
        ({"bias": torch.ones(6)}, r"bias has shape \[6\]"),
        ({"norm_weight": torch.ones(8)}, r"norm_weight has shape \[8\], not \[4\]"),
        ({"norm_bias": torch.ones(4, dtype=torch.int32)}, "norm_bias is torch.int32"),
        ({"kernel": torch.ones(5, 5, device="meta")}, "kernel is on meta"),
        ({"backend": "fast"}, "backend is 'fast'"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    names = "x", "kernel", "bias", "norm_weight", "norm_bias"
    arguments = dict(zip(names, (t.detach() for t in example()), strict=True)) | {"axis": 1} | change
    with pytest.raises(InputError, match=message):
        spatial_gate(**arguments)


def test_operator_check() -> None:
    torch.library.opcheck(cpu.spatial_gate_fwd, (*example(axis=2), 2, EPS))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_compile_and_export(backend: str) -> None:
    inputs = example()

    def run(*inputs: Tensor) -> Tensor:
        return spatial_gate(*inputs, axis=1, backend=backend).square().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(form(*inputs), inputs) for form in (run, compiled)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)

    class Layer(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return spatial_gate(*inputs, axis=1, backend=backend)

    x, *weights = (t.detach() for t in inputs)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)}, *({},) * 4)
    exported = torch.export.export(Layer(), (x, *weights), dynamic_shapes=(shapes,))
    longer = torch.randn(7, 5, 6, 8)
    torch.testing.assert_close(exported.module()(longer, *weights), spatial_gate(longer, *weights, axis=1))


def test_autocast_changes_nothing() -> None:
    inputs = [t.detach() for t in example()]
    exact = spatial_gate(*inputs, axis=1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(spatial_gate(*inputs, axis=1), exact, rtol=0, atol=0)
