"""The Haar transform against its definition, and its inverse."""

from __future__ import annotations

import math

import operators
import pytest
import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels import haar as operator
from toolkit.kernels.haar import haar, haar_2d, inverse_haar, inverse_haar_2d, reference

FAST = operators.FORMS[1:]
LENGTHS = [1, 2, 3, 8, 33, 130]


def example(*shape: int, dtype: torch.dtype = torch.float32, form: str = "torch") -> Tensor:
    draws = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return draws.to(operators.device_of(form), dtype).requires_grad_()


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("n", [*LENGTHS, 2049])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0, 4)])
def test_fast_equals_definition(n: int, batch: tuple[int, ...], form: str) -> None:
    x = example(*batch, n, form=form)
    runs = []
    for backend in (form, "reference"):
        low, high = haar(x, backend=backend)
        runs.append((low, high, *torch.autograd.grad(low.square().sum() + (high * low.detach()).sum(), x)))
    torch.testing.assert_close(*runs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("n", LENGTHS)
def test_inverse(n: int, form: str) -> None:
    x = example(3, n, form=form)
    bands = [band.detach().requires_grad_() for band in haar(x, backend=form)]
    torch.testing.assert_close(inverse_haar(*bands, n, backend=form), x)
    weights = example(3, n, form=form).detach()
    runs = [
        torch.autograd.grad((inverse_haar(*bands, n, backend=b) * weights).sum(), bands) for b in (form, "reference")
    ]
    torch.testing.assert_close(*runs, rtol=1e-6, atol=1e-6)


def test_energy_is_kept_and_a_constant_has_no_details() -> None:
    x = example(4, 40).detach()
    low, high = haar(x)
    torch.testing.assert_close(low.square().sum() + high.square().sum(), x.square().sum())
    low, high = haar(torch.ones(7))
    torch.testing.assert_close(low, torch.full((4,), math.sqrt(2)))
    assert not high.any()


def test_the_repeated_sample_hands_its_gradient_to_the_last_one() -> None:
    x = example(5)
    low, high = haar(x)
    (dx,) = torch.autograd.grad(3 * low[-1] + 7 * high[-1], x)
    torch.testing.assert_close(dx, torch.tensor([0, 0, 0, 0, 3 * math.sqrt(2)]))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1), (2, 3)])
def test_two_dimensions(size: tuple[int, int]) -> None:
    x = example(2, 3, *size).detach()
    bands = haar_2d(x)
    low, high = reference.haar(x)
    exact = [band.mT for rows in (low, high) for band in reference.haar(rows.mT)]
    torch.testing.assert_close(list(bands), exact)
    torch.testing.assert_close(inverse_haar_2d(*bands, size), x)


@pytest.mark.parametrize("n", [6, 7])
def test_gradcheck_twice(n: int) -> None:
    x = example(2, n, dtype=torch.float64)
    assert torch.autograd.gradcheck(reference.haar, x)
    assert torch.autograd.gradgradcheck(reference.haar, x)
    bands = [band.detach().requires_grad_() for band in reference.haar(x)]
    assert torch.autograd.gradcheck(lambda *b: reference.inverse_haar(*b, n), bands)


@pytest.mark.parametrize("n", [6, 7])
def test_gradcheck_of_the_cpu_form(n: int) -> None:
    x = example(2, n, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: haar(x, backend="torch"), x)
    bands = [band.detach().requires_grad_() for band in reference.haar(x)]
    assert torch.autograd.gradcheck(lambda *b: inverse_haar(*b, n, backend="torch"), bands)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("n", [6, 7])
def test_second_derivative_of_the_fast_form(n: int, form: str) -> None:
    x = example(2, n, form=form)
    runs = []
    for backend in (form, "reference"):
        low, high = haar(x, backend=backend)
        (dx,) = torch.autograd.grad((low**3).sum() + (high**3).sum(), x, create_graph=True)
        runs.append(torch.autograd.grad(dx.square().sum(), x)[0])
    torch.testing.assert_close(*runs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype, form: str) -> None:
    x = example(3, 41, dtype=dtype, form=form)
    exact = reference.haar(x.double())
    bands = haar(x, backend=form)
    for band, true in zip(bands, exact, strict=True):
        assert band.dtype == dtype
        assert (band.double() - true).norm() <= 6e-3 * true.norm()
    back = inverse_haar(*bands, 41, backend=form)
    assert back.dtype == dtype
    assert (back.double() - x.double()).norm() <= 1e-2 * x.double().norm()


@pytest.mark.parametrize("form", FAST)
def test_layouts(form: str) -> None:
    x = example(4, 6, 9, form=form).detach()
    for view in (x.mT, x[:, ::2, 1::3], x[:1].expand(5, 6, 9)):
        torch.testing.assert_close(haar(view, backend=form), haar(view.contiguous(), backend=form), rtol=0, atol=0)
        low, high = haar(view, backend=form)
        whole = [inverse_haar(*bands, backend=form) for bands in ((low.mT, high.mT), (low.mT.clone(), high.mT.clone()))]
        torch.testing.assert_close(*whole)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("band", [0, 1])
def test_gradient_of_one_band(band: int, form: str) -> None:
    x = example(2, 9, form=form)
    runs = [torch.autograd.grad(haar(x, backend=b)[band].sum(), x)[0] for b in (form, "reference")]
    torch.testing.assert_close(*runs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: haar(torch.tensor(1.0)), r"x has shape \[\]"),
        (lambda: haar(torch.ones(3, 0)), r"x has shape \[3, 0\]"),
        (lambda: haar(torch.ones(3, dtype=torch.int64)), "haar does not take torch.int64"),
        (lambda: haar(torch.ones(3), backend="fast"), "backend is 'fast'"),
        (lambda: haar_2d(torch.ones(3)), "x has shape"),
        (lambda: inverse_haar(torch.ones(3), torch.ones(2)), r"high \[2\]"),
        (lambda: inverse_haar(torch.ones(3), torch.ones(3, dtype=torch.float64)), "high torch.float64"),
        (lambda: inverse_haar(torch.ones(3), torch.ones(3), 4), "n is 4, but 3 pairs come from 5 or 6"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("repeat", [True, False])
def test_operator_check(repeat: bool, form: str) -> None:
    torch.library.opcheck(operator._split, (example(2, 7, form=form), repeat, form))
    torch.library.opcheck(operator._merge, (example(2, 4, form=form), example(2, 4, form=form), 7, repeat, form))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_compile_and_export(backend: str) -> None:
    x = example(2, 3, 9)

    def run(x: Tensor) -> Tensor:
        low, high = haar(x, backend=backend)
        return (inverse_haar(low, 2 * high, 9, backend=backend) * x).sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(*(torch.autograd.grad(form(x), x) for form in (run, compiled)))

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return haar(x, backend=backend)

    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(Layer(), (x.detach(),), dynamic_shapes=({0: batch},))
    longer = example(5, 3, 9).detach()
    torch.testing.assert_close(exported.module()(longer), haar(longer))
