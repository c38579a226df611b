"""The fast forms of the spatial gating unit against its definition in float64."""

from __future__ import annotations

import operators
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.errors import InputError
from toolkit.kernels import spatial_gate as operator
from toolkit.kernels.spatial_gate import cpu, reference, spatial_gate

EPS = 1e-6
FAST = operators.FORMS[1:]


def example(B=2, G=5, P=6, C=4, axis=1, dtype=torch.float32, form="torch") -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    n, device = (G, P)[axis - 1], operators.device_of(form)
    shapes = (B, G, P, 2 * C), (n, n), (n,), (C,), (C,)
    return [torch.randn(s, generator=draws).to(device, dtype).requires_grad_() for s in shapes]


def results(inputs: list[Tensor], axis: int, **options) -> list[Tensor]:
    y = spatial_gate(*inputs, axis=axis, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def check(inputs: list[Tensor], axis: int, form: str = "torch", tolerance: float = 2e-6) -> None:
    exact = results([x.detach().double().requires_grad_() for x in inputs], axis, backend="reference")
    for got, true in zip(results(inputs, axis, backend=form), exact, strict=True):
        assert got.isfinite().all()
        assert (got.double() - true).norm() <= tolerance * true.norm().clamp_min(1e-30)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("sizes", [(2, 5, 6, 4), (1, 16, 9, 12), (3, 1, 7, 5), (3, 7, 1, 5), (1, 1, 1, 3)])
@pytest.mark.parametrize("tile", [1, 60, 1 << 16])
def test_fast_equals_definition(axis: int, sizes: tuple[int, ...], tile: int, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "TILE", tile)
    check(example(*sizes, axis=axis), axis)


@pytest.mark.skipif("triton" not in FAST, reason="needs triton")
@pytest.mark.parametrize(
    ("sizes", "axis"),
    [
        ((1, 5, 2, 40), 1),  # several tiles of channels
        ((1, 2, 20, 4), 2),  # more than one step of the sum over tokens
        ((1, 70, 1, 3), 1),  # several tiles of tokens
        ((2, 1, 1, 130), 2),  # several steps of the norm
        ((1, 2, 17, 33), 2),
    ],
)
def test_triton_equals_definition(sizes: tuple[int, ...], axis: int) -> None:
    check(example(*sizes, axis=axis, form="triton"), axis, "triton")


@pytest.mark.skipif("triton" not in FAST, reason="needs triton")
def test_programs_share_the_sum_of_the_mixing_kernel(monkeypatch) -> None:
    from toolkit.kernels.spatial_gate import triton as kernels

    monkeypatch.setattr(kernels, "PROGRAMS", 3)
    check(example(2, 2, 5, 40, axis=2, form="triton"), 2, "triton")


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


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(axis: int, dtype: torch.dtype, form: str) -> None:
    G, P = (16, 3) if axis == 1 else (3, 16)
    inputs = example(1, G, P, 12, axis, dtype, form)
    got = results(inputs, axis, backend=form)
    assert all(x.dtype == dtype for x in got)
    exact = results([x.detach().double().requires_grad_() for x in inputs], axis)
    for value, true in zip(got, exact, strict=True):
        assert (value.double() - true).norm() <= (5e-3 if form == "torch" else 1e-2) * true.norm()
    mixed = [inputs[0], *(x.detach().float().requires_grad_() for x in inputs[1:])]
    assert [x.dtype for x in results(mixed, axis, backend=form)] == [dtype, dtype] + [torch.float32] * 4


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("size", [1e-3, 1e12])
def test_extreme_values_stay_finite(size: float, form: str) -> None:
    x, *weights = example(C=2, form=form)
    x = (size * x.detach()).requires_grad_()
    assert all(value.isfinite().all() for value in results([x, *weights], 1, backend=form))


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("axis", [1, 2])
def test_layouts(axis: int, form: str) -> None:
    x, *weights = example(1, 3, 3, 2, axis=axis, form=form)
    exact = results([x, *weights], axis, backend=form)
    strided = x.detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    kernel = weights[0].detach().t().contiguous().t().requires_grad_()
    torch.testing.assert_close(results([strided, kernel, *weights[1:]], axis, backend=form), exact)
    one = x[:1].detach().expand(3, -1, -1, -1)
    wholes = [spatial_gate(whole, *weights, axis=axis, backend=form) for whole in (one, one.clone())]
    torch.testing.assert_close(*wholes)
    y = spatial_gate(x, *weights, axis=axis, backend=form)
    ones = torch.ones(()).expand_as(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, x, ones, retain_graph=True), torch.autograd.grad(y, x, ones.contiguous())
    )


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("shape", [(0, 5, 6), (2, 5, 0)])
def test_nothing_to_do(shape: tuple[int, int, int], form: str) -> None:
    inputs = example(*shape, form=form)
    y, dx, *sums = results(inputs, 1, backend=form)
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
        ({"norm_bias": torch.ones(4, dtype=torch.int32)}, "spatial_gate does not take torch.int32"),
        ({"kernel": torch.ones(5, 5, device="meta")}, "on cpu and on meta"),
        ({"x": torch.ones(2, 5, 6, 8).double(), "backend": "torch"}, "computes in float32"),
        ({"backend": "fast"}, "backend is 'fast'"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    names = "x", "kernel", "bias", "norm_weight", "norm_bias"
    arguments = dict(zip(names, (t.detach() for t in example()), strict=True)) | {"axis": 1} | change
    with pytest.raises(InputError, match=message):
        spatial_gate(**arguments)


@pytest.mark.parametrize("form", FAST)
def test_operator_check(form: str) -> None:
    inputs = example(1, 1, 3, 4, axis=2, form=form)
    torch.library.opcheck(operator._forward, (*inputs, 2, EPS, form))
    plain = [t.detach() for t in inputs]
    y, kept = operator._forward(*plain, 2, EPS, form)
    torch.library.opcheck(operator._backward, (torch.ones_like(y), kept, *plain, 2, EPS, form))


def test_second_derivative_of_the_fast_form() -> None:
    inputs = example(1, 2, 3, 2)
    runs = []
    for form in ("torch", "reference"):
        y = spatial_gate(*inputs, axis=1, eps=1e-2, backend=form)
        gradients = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        runs.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs))
    torch.testing.assert_close(*runs, rtol=1e-3, atol=1e-3)


def test_fake_tensors_of_a_gpu_that_is_not_there() -> None:
    with FakeTensorMode():
        x, *weights = (torch.empty(t.shape, device="cuda") for t in example())
        y, kept = operator._forward(x, *weights, 1, EPS, "triton")
        gradients = operator._backward(y, kept, x, *weights, 1, EPS, "triton")
    assert y.shape == (2, 5, 6, 4)
    assert [g.shape for g in gradients] == [t.shape for t in (x, *weights)]


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
