"""The fast forms of the gated recursive convolution against its definition in float64."""

from __future__ import annotations

import math

import operators
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.errors import InputError
from toolkit.kernels import gnconv as operator
from toolkit.kernels.gnconv import Weights, cpu, gated_recursion, gnconv, gnconv_steps, reference

needs_triton = pytest.mark.skipif("triton" not in operators.FORMS, reason="needs triton")


def example(d=8, order=3, k=7, c=None, out=None, size=(2, 5, 6), dtype=torch.float32, form="torch") -> list[Tensor]:
    """x, then the weights in a row."""
    draws = torch.Generator().manual_seed(0)
    c, widths = c or d, [d >> (order - 1 - i) for i in range(order)]
    total = sum(widths)
    shapes = [(size[0], c, *size[1:]), (2 * d, c, 1, 1), (2 * d,), (total, 1, k, k), (total,)]
    shapes += [(widths[i + 1], widths[i], 1, 1) for i in range(order - 1)] + [(w,) for w in widths[1:]]
    shapes += [] if out == 0 else [(out or d, d, 1, 1), (out or d,)]
    fans = [1, *(math.prod(s[1:]) for s in shapes[1:])]
    values = [torch.randn(s, generator=draws) / fan**0.5 for s, fan in zip(shapes, fans, strict=True)]
    return [value.to(operators.device_of(form), dtype).requires_grad_() for value in values]


def bundle(flat: list[Tensor], order: int = 3) -> Weights:
    pws, rest = flat[4 : 2 * order + 2], flat[2 * order + 2 :]
    return Weights(*flat[:4], tuple(pws[: order - 1]), tuple(pws[order - 1 :]), *(rest or (None, None)))


def results(inputs: list[Tensor], order: int = 3, **options) -> list[Tensor]:
    x, *flat = inputs
    y = gnconv(x, bundle(flat, order), **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def double(inputs: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in inputs]


def check(inputs: list[Tensor], order: int = 3, tolerance: float = 2e-6, form: str = "torch", **options) -> None:
    exact = results(double(inputs), order, backend="reference", **options)
    for got, true in zip(results(inputs, order, backend=form, **options), exact, strict=True):
        assert got.isfinite().all()
        assert (got.double() - true).norm() <= tolerance * true.norm()


@pytest.mark.parametrize(("d", "order"), [(8, 1), (8, 2), (8, 3), (16, 4), (32, 5), (4, 3), (24, 4)])
def test_orders(d: int, order: int) -> None:
    check(example(d, order), order, scale=1 / 3)


@needs_triton
@pytest.mark.parametrize(
    ("d", "order", "size"),
    [(4, 1, (2, 3, 4)), (4, 3, (2, 5, 6)), (40, 2, (1, 9, 8)), (8, 2, (1, 1, 1)), (4, 2, (3, 2, 2)), (8, 3, (0, 5, 6))],
)
def test_triton_equals_definition(d: int, order: int, size: tuple[int, int, int]) -> None:
    if size[0]:
        check(example(d, order, 3, size=size, form="triton"), order, form="triton", scale=1 / 3)
    else:
        y, *gradients = results(example(d, order, 3, size=size, form="triton"), order, backend="triton")
        assert y.shape == (0, 8, 5, 6)
        assert not any(x.any() for x in gradients)


@needs_triton
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_triton_in_low_precision(dtype: torch.dtype, tolerance: float) -> None:
    inputs = example(4, k=3, dtype=dtype, form="triton")
    exact = results(double(inputs), backend="reference")
    for value, true in zip(results(inputs, backend="triton"), exact, strict=True):
        assert value.dtype == dtype
        assert (value.double() - true).norm() <= tolerance * true.norm()


@pytest.mark.parametrize("k", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(2, 5, 6), (1, 1, 1), (3, 1, 9), (1, 12, 2)])
@pytest.mark.parametrize("tile", [1, 200, 1 << 16])
def test_kernels_and_sizes(k: int, size: tuple[int, int, int], tile: int, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "TILE", tile)
    check(example(k=k, size=size))


@pytest.mark.parametrize(("c", "out"), [(5, None), (None, 3), (5, 0), (None, 0)])
def test_other_widths_in_and_out(c: int | None, out: int | None) -> None:
    check(example(c=c, out=out))


def test_order_one_is_a_gated_convolution() -> None:
    x, *flat = (t.detach() for t in example(order=1))
    w = bundle(flat, 1)
    a, rest = F.conv2d(x, w.proj_in_weight, w.proj_in_bias).chunk(2, 1)
    gated = a * F.conv2d(rest, w.dwconv_weight, w.dwconv_bias, padding=3, groups=8)
    torch.testing.assert_close(gnconv(x, w), F.conv2d(gated, w.proj_out_weight, w.proj_out_bias))


@pytest.mark.parametrize("form", operators.FORMS[1:])
def test_steps_and_their_gradients(form: str) -> None:
    inputs = example(form=form)
    runs = []
    for backend in (form, "reference"):
        y, steps = gnconv_steps(inputs[0], bundle(inputs[1:]), backend=backend)
        assert [step.shape[1] for step in steps] == [2, 4, 8]
        loss = y.sum() + sum((i + 1) * step.square().sum() for i, step in enumerate(steps))
        first = torch.autograd.grad(steps[0].sum(), inputs, retain_graph=True, allow_unused=True)
        runs.append((y, steps, torch.autograd.grad(loss, inputs), first[0]))
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("form", operators.FORMS[1:])
def test_recursion_alone(form: str) -> None:
    draws = torch.Generator().manual_seed(0)
    shapes = (2, 2, 3, 4), (2, 14, 3, 4), (4, 2, 1, 1), (8, 4, 1, 1), (4,), (8,)
    inputs = [torch.randn(s, generator=draws).to(operators.device_of(form)).requires_grad_() for s in shapes]
    runs = []
    for backend in (form, "reference"):
        steps = gated_recursion(*inputs[:2], inputs[2:4], inputs[4:], backend=backend)
        runs.append((steps, torch.autograd.grad(steps[-1].square().sum(), inputs)))
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-4)
    half = [x.detach().bfloat16() for x in inputs]
    assert gated_recursion(*half[:2], half[2:4], half[4:], backend=form)[-1].dtype == torch.bfloat16


def test_gradcheck_twice() -> None:
    x, *flat = example(4, 2, 3, size=(1, 2, 3), dtype=torch.float64)

    def run(x: Tensor, *flat: Tensor) -> Tensor:
        return reference.gnconv(x, bundle(list(flat), 2), 0.5)[0]

    assert torch.autograd.gradcheck(run, (x, *flat))
    assert torch.autograd.gradgradcheck(run, (x, *flat))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_low_precision(dtype: torch.dtype, tolerance: float) -> None:
    inputs = example(dtype=dtype)
    got = results(inputs, scale=1 / 3)
    exact = results(double(inputs), scale=1 / 3)
    for value, true in zip(got, exact, strict=True):
        assert value.dtype == dtype
        assert (value.double() - true).norm() <= tolerance * true.norm()


def test_layouts() -> None:
    x, *flat = example(k=3)
    exact = results([x, *flat])
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    weights = [t.detach().to(memory_format=torch.channels_last) if t.dim() == 4 else t.detach() for t in flat]
    got = results([last, *(t.requires_grad_() for t in weights)])
    torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-3)
    one = x[:1].detach().expand(3, -1, -1, -1)
    torch.testing.assert_close(gnconv(one, bundle(flat)), gnconv(one.clone(), bundle(flat)))


@pytest.mark.parametrize("wanted", range(11))
def test_gradient_of_one_input(wanted: int) -> None:
    x, *flat = (t.detach() for t in example(k=3))
    ([x, *flat])[wanted].requires_grad_()
    runs = [gnconv(x, bundle(flat), scale=0.3, backend=b).square().sum() for b in ("torch", "reference")]
    torch.testing.assert_close(*(torch.autograd.grad(y, ([x, *flat])[wanted]) for y in runs), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_nothing_to_do(backend: str) -> None:
    y, *gradients = results(example(size=(0, 5, 6)), backend=backend)
    assert y.shape == (0, 8, 5, 6)
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.ones(2, 8, 5)}, r"x has shape \[2, 8, 5\]"),
        ({0: torch.ones(2, 7, 5, 6)}, r"proj_in_weight has shape \[16, 8, 1, 1\], not \[16, 7, 1, 1\]"),
        ({1: torch.ones(12, 8, 1, 1)}, "order 3 needs channels divisible by 4, but proj_in_weight gives 6"),
        ({2: torch.ones(16, dtype=torch.int64)}, "proj_in_bias is torch.int64"),
        ({3: torch.ones(14, 1, 6, 6)}, "kernel of 6"),
        ({4: torch.ones(13)}, r"dwconv_bias has shape \[13\]"),
        ({5: torch.ones(5, 2, 1, 1)}, r"pws_weights\[0\] has shape"),
        ({8: torch.ones(4)}, r"pws_biases\[1\] \[4\]"),
        ({9: torch.ones(8, 4, 1, 1)}, "proj_out_weight has shape"),
        ({10: torch.ones(8, device="meta")}, "proj_out_bias is on meta"),
    ],
)
def test_errors(change: dict[int, Tensor], message: str) -> None:
    inputs = [change.get(i, t.detach()) for i, t in enumerate(example())]
    with pytest.raises(InputError, match=message):
        gnconv(inputs[0], bundle(inputs[1:]))


def test_errors_of_the_recursion() -> None:
    a, b, weight, bias = torch.ones(1, 2, 3, 3), torch.ones(1, 6, 3, 3), torch.ones(4, 2, 1, 1), torch.ones(4)
    for arguments, message in (
        ((a, b[:, :5], [weight], [bias]), "b has shape"),
        ((a[0], b, [weight], [bias]), "a has shape"),
        ((a, b, [weight], []), "1 weights, but 0 biases"),
        ((a, b, [weight.long()], [bias]), "int64"),
    ):
        with pytest.raises(InputError, match=message):
            gated_recursion(*arguments)


@pytest.mark.parametrize("form", operators.FORMS[1:])
def test_operator_check(form: str) -> None:
    _, *flat = example(4, k=3, form=form)
    a, b = (torch.randn(1, c, 2, 3, device=flat[0].device, requires_grad=True) for c in (1, 7))
    if form == "torch":
        torch.library.opcheck(operator._depthwise, (b, flat[2], flat[3]))
    torch.library.opcheck(operator._chain, (a, b, flat[4:6], flat[6:8], form))


def test_fake_tensors_of_a_gpu_that_is_not_there() -> None:
    with FakeTensorMode():
        a, b = torch.empty(2, 2, 5, 6, device="cuda"), torch.empty(2, 6, 5, 6, device="cuda")
        weight, bias = torch.empty(4, 2, 1, 1, device="cuda"), torch.empty(4, device="cuda")
        steps = operator._chain(a, b, [weight], [bias], "triton")
        gradients = operator._chain_backward([None, steps[1]], a, b, steps, [weight], [bias], "triton")
    assert [s.shape[1] for s in steps] == [2, 4]
    assert [g.shape for g in gradients] == [t.shape for t in (a, b, weight, bias)]


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_compile_and_export(backend: str) -> None:
    inputs = example(k=3)

    def run(x: Tensor, *flat: Tensor) -> Tensor:
        return gnconv(x, bundle(list(flat)), scale=0.3, backend=backend).square().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(form(*inputs), inputs) for form in (run, compiled)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-2)

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, *flat: Tensor) -> Tensor:
            return gnconv(x, bundle(list(flat)), backend=backend)

    x, *flat = (t.detach() for t in inputs)
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 2: torch.export.Dim("height", min=4, max=512)}
    exported = torch.export.export(Layer(), (x, *flat), dynamic_shapes=(sizes, tuple({} for _ in flat)))
    larger = torch.randn(3, 8, 9, 6)
    torch.testing.assert_close(exported.module()(larger, *flat), gnconv(larger, bundle(flat)), rtol=1e-4, atol=1e-3)


def test_autocast_changes_nothing() -> None:
    x, *flat = (t.detach() for t in example())
    exact = gnconv(x, bundle(flat))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gnconv(x, bundle(flat)), exact, rtol=0, atol=0)
