"""Batched dynamic time warping against its definition, brute force and finite differences."""

from __future__ import annotations

import itertools

import operators
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.errors import InputError
from toolkit.kernels import soft_dtw as operator
from toolkit.kernels.soft_dtw import cpu, diagonals, dtw, fast, reference, soft_dtw, soft_dtw_from_costs

COSTS = ["sqeuclidean", "l2", "l1"]
needs_triton = pytest.mark.skipif("triton" not in operators.FORMS, reason="needs triton")


def example(B=3, N=7, M=6, D=2, dtype=torch.float32, form="torch") -> list[Tensor]:
    draws, device = torch.Generator().manual_seed(0), operators.device_of(form)
    return [torch.randn(B, n, D, generator=draws).to(device, dtype).requires_grad_() for n in (N, M)]


def results(inputs: list[Tensor], **options) -> list[Tensor]:
    values = soft_dtw(*inputs, **options)
    weights = torch.linspace(-1, 2, len(values)).to(values)
    return [values.detach(), *torch.autograd.grad(values, inputs, weights)]


def check(inputs: list[Tensor], form: str = "torch", **options) -> None:
    exact = results([t.detach().double().requires_grad_() for t in inputs], backend="reference", **options)
    for got, true in zip(results(inputs, backend=form, **options), exact, strict=True):
        assert got.isfinite().all()
        assert (got - true).norm() <= 1e-6 * true.norm().clamp_min(1e-3)


def path_sums(costs: Tensor) -> Tensor:
    """Sums of the costs of every path through one table."""
    N, M = costs.shape
    sums = []

    def walk(i: int, j: int, total: float) -> None:
        total += float(costs[i, j])
        if (i, j) == (N - 1, M - 1):
            sums.append(total)
        for a, b in ((i + 1, j), (i, j + 1), (i + 1, j + 1)):
            if a < N and b < M:
                walk(a, b, total)

    walk(0, 0, 0.0)
    return torch.tensor(sums, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.0, 0.01, 1.0, 50.0])
def test_value_is_the_soft_minimum_over_all_paths(gamma: float) -> None:
    costs = torch.rand(2, 4, 5, dtype=torch.float64)
    values = soft_dtw_from_costs(costs, gamma=gamma)
    for value, table in zip(values, costs, strict=True):
        sums = path_sums(table)
        exact = -gamma * torch.logsumexp(-sums / gamma, 0) if gamma else sums.min()
        torch.testing.assert_close(value, exact)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("gamma", [0.0, 0.01, 1.0])
@pytest.mark.parametrize(("N", "M"), [(1, 1), (1, 6), (7, 1), (7, 6), (5, 5), (4, 9)])
def test_fast_equals_definition(cost: str, gamma: float, N: int, M: int) -> None:
    check(example(N=N, M=M), cost=cost, gamma=gamma)


@pytest.mark.parametrize("bandwidth", [None, 2, 0.25, 0.5])
@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("group", [1, 30, 1 << 13])
def test_lengths_and_bands(bandwidth: int | float | None, gamma: float, group: int, monkeypatch) -> None:
    monkeypatch.setattr(diagonals, "GROUP", group)
    lengths = [(9, 8), (7, 9), (5, 5), (8, 8), (9, 7)]
    check(example(5, 9, 9), lengths=lengths, bandwidth=bandwidth, gamma=gamma)


@needs_triton
@pytest.mark.parametrize("gamma", [0.0, 0.01, 1.0])
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((1, 1, 1), {}),
        ((1, 1, 5), {"cost": "l1"}),
        ((1, 5, 1), {"cost": "l2"}),
        ((2, 6, 5), {"lengths": [(6, 5), (4, 2)]}),
        ((2, 5, 6), {"bandwidth": 1}),
        ((2, 6, 4), {"bandwidth": 0.3, "lengths": [(6, 4), (3, 4)]}),
    ],
)
def test_triton_equals_definition(sizes: tuple[int, int, int], options: dict, gamma: float) -> None:
    check(example(*sizes, form="triton"), "triton", gamma=gamma, **options)


@needs_triton
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 1e3])
@pytest.mark.parametrize("size", [1e-8, 1e15])
def test_triton_on_extreme_costs(gamma: float, size: float) -> None:
    inputs = [(size * t.detach()).requires_grad_() for t in example(1, 4, 3, form="triton")]
    check(inputs, "triton", gamma=gamma, bandwidth=2)


@needs_triton
def test_triton_groups_and_choice_between_equal_ways(monkeypatch) -> None:
    from toolkit.kernels.soft_dtw import triton as kernels

    monkeypatch.setattr(kernels, "CELLS", 20)
    costs = torch.zeros(3, 3, 3, device=operators.TRITON_DEVICE, requires_grad=True)
    values = soft_dtw_from_costs(costs, gamma=0.0, backend="triton")
    (path,) = torch.autograd.grad(values.sum(), costs)
    torch.testing.assert_close(path.cpu(), torch.tensor([[1.0, 1, 1], [0, 0, 1], [0, 0, 1]]).expand(3, 3, 3))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_triton_types(dtype: torch.dtype) -> None:
    inputs = example(1, 4, 5, dtype=dtype, form="triton")
    got = results(inputs, backend="triton")
    assert [t.dtype for t in got] == [torch.promote_types(dtype, torch.float32), dtype, dtype]
    exact = results([t.detach().double().requires_grad_() for t in inputs], backend="reference")
    for value, true in zip(got, exact, strict=True):
        assert (value.double() - true).norm() <= 5e-3 * true.norm()


@needs_triton
def test_triton_has_a_longest_sequence() -> None:
    with pytest.raises(InputError, match="backend=triton asks soft_dtw for triton, but x has 2049 points, over 2048"):
        dtw(torch.zeros(1, 2049, 1), torch.zeros(1, 2, 1), backend="triton")


def test_fake_tensors_of_a_gpu_that_is_not_there() -> None:
    with FakeTensorMode():
        x, y = torch.empty(3, 7, 2, device="cuda"), torch.empty(3, 6, 2, device="cuda")
        found = operator._forward(x, y, None, "l2", 1.0, -1.0, True, -1, True, "triton")
    assert [t.shape for t in found] == [(3,), x.shape, y.shape]


@pytest.mark.parametrize("bandwidth", [None, 3, 0.4])
def test_each_pair_is_as_if_alone(bandwidth: int | float | None) -> None:
    inputs = example(4, 9, 9)
    lengths = [(9, 8), (7, 9), (1, 1), (6, 6)]
    values, dx, dy = results(inputs, lengths=lengths, bandwidth=bandwidth, gamma=0.5)
    weights = torch.linspace(-1, 2, 4)
    for b, (n, m) in enumerate(lengths):
        alone = [inputs[0][b : b + 1, :n].detach().requires_grad_(), inputs[1][b : b + 1, :m].detach().requires_grad_()]
        value = soft_dtw(*alone, bandwidth=bandwidth, gamma=0.5)
        torch.testing.assert_close(value[0], values[b])
        left, right = torch.autograd.grad(value[0] * weights[b], alone)
        torch.testing.assert_close((left[0], right[0]), (dx[b, :n], dy[b, :m]), rtol=1e-5, atol=1e-6)
        assert not dx[b, n:].any()
        assert not dy[b, m:].any()


def test_what_lies_beyond_the_lengths_is_not_read() -> None:
    x, y = (t.detach() for t in example())
    lengths = [(5, 4), (7, 6), (3, 6)]
    exact = results([x.clone().requires_grad_(), y.clone().requires_grad_()], lengths=lengths)
    for b, (n, m) in enumerate(lengths):
        x[b, n:], y[b, m:] = torch.nan, torch.inf
    torch.testing.assert_close(results([x.requires_grad_(), y.requires_grad_()], lengths=lengths), exact)


def test_band_keeps_ties_and_counts_cells_or_fractions() -> None:
    fraction = cpu.band([(11, 11)], torch.empty(1, 11, 11), 0.1, False)[0]
    i, j = torch.arange(11).view(-1, 1), torch.arange(11)
    assert torch.equal(fraction, (i - j).abs() <= 1)  # 0.1 in exact arithmetic stays inside
    assert torch.equal(cpu.band([(4, 9)], torch.empty(1, 4, 9), 2.0, True)[0], (i[:4] - j[:9]).abs() <= 2)
    x, y = example(1, 6, 6)
    diagonal = (x - y).square().sum()
    torch.testing.assert_close(soft_dtw(x, y, bandwidth=0, gamma=0.3)[0], diagonal)
    torch.testing.assert_close(soft_dtw(x, y, bandwidth=0.0, gamma=0.3)[0], diagonal)


def test_alignment() -> None:
    costs = torch.rand(2, 6, 8, requires_grad=True)
    for gamma in (0.0, 0.01, 1.0):
        (alignment,) = torch.autograd.grad(soft_dtw_from_costs(costs, gamma=gamma, bandwidth=4).sum(), costs)
        assert alignment.min() >= 0
        torch.testing.assert_close(alignment[:, [0, -1], [0, -1]], torch.ones(2, 2))
        i, j = torch.arange(6).view(-1, 1), torch.arange(8)
        assert not alignment[:, (i - j).abs() > 4].any()
    hard = torch.autograd.grad(soft_dtw_from_costs(costs, gamma=0.0).sum(), costs)[0]
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close((hard * costs).sum((1, 2)), soft_dtw_from_costs(costs, gamma=0.0))


def test_equal_ways_prefer_the_row_above() -> None:
    costs = torch.zeros(1, 3, 3, requires_grad=True)
    runs = [soft_dtw_from_costs(costs, gamma=0.0, backend=b).sum() for b in ("torch", "reference")]
    for value in runs:
        (path,) = torch.autograd.grad(value, costs)
        torch.testing.assert_close(path[0], torch.tensor([[1.0, 1, 1], [0, 0, 1], [0, 0, 1]]))


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("size", [1e-8, 1e4, 1e15])
def test_extreme_costs_stay_finite(gamma: float, size: float) -> None:
    inputs = [(size * t.detach()).requires_grad_() for t in example()]
    for cost in COSTS:
        assert all(t.isfinite().all() for t in results(inputs, gamma=gamma, cost=cost, bandwidth=3))


@pytest.mark.parametrize("cost", COSTS)
def test_equal_sequences(cost: str) -> None:
    x = example()[0]
    y = x.detach().clone().requires_grad_()
    torch.testing.assert_close(dtw(x, y, cost=cost).detach(), torch.zeros(3), rtol=0, atol=1e-6)
    for gamma in (0.0, 0.01):
        assert all(t.isfinite().all() for t in results([x, y], gamma=gamma, cost=cost))


@pytest.mark.parametrize("gamma", [0.2, 0.0])
@pytest.mark.parametrize("cost", COSTS)
def test_finite_differences(cost: str, gamma: float) -> None:
    x, y = example(2, 4, 5, dtype=torch.float64)
    options = {"gamma": gamma, "cost": cost, "lengths": [(4, 5), (3, 4)], "bandwidth": 0.7}
    for backend in ("reference", "torch"):
        assert torch.autograd.gradcheck(lambda x, y, b=backend: soft_dtw(x, y, backend=b, **options), (x, y))


def test_second_derivative_is_refused_by_the_fast_form_and_given_by_the_definition() -> None:
    x, y = example(1, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x, y: soft_dtw(x, y, backend="reference"), (x, y))
    (dx,) = torch.autograd.grad(soft_dtw(x, y).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="dtw_bwd"):
        dx.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    inputs = example(dtype=dtype)
    got = results(inputs)
    assert [t.dtype for t in got] == [torch.float32, dtype, dtype]
    for value, true in zip(got, results([t.detach().double().requires_grad_() for t in inputs]), strict=True):
        assert (value.double() - true).norm() <= 5e-3 * true.norm()


def test_layouts() -> None:
    x, y = example(4, 9, 8)
    exact = results([x, y])
    left = x.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    right = torch.stack([y.detach()] * 2, 1)[:, 0].requires_grad_()
    torch.testing.assert_close(results([left, right]), exact)
    one = x[:1].detach().expand(4, -1, -1)
    torch.testing.assert_close(soft_dtw(one, y), soft_dtw(one.contiguous(), y))
    values = soft_dtw(x, y)
    runs = [
        torch.autograd.grad(values, x, ones, retain_graph=True) for ones in (torch.ones(()).expand(4), torch.ones(4))
    ]
    torch.testing.assert_close(*runs)


@pytest.mark.parametrize("wanted", [0, 1])
def test_gradient_of_one_input(wanted: int) -> None:
    inputs = [t.detach() for t in example()]
    inputs[wanted].requires_grad_()
    runs = [torch.autograd.grad(soft_dtw(*inputs, backend=b).sum(), inputs[wanted]) for b in ("torch", "reference")]
    torch.testing.assert_close(*runs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_no_pairs(backend: str) -> None:
    values, dx, _ = results(example(0), backend=backend, lengths=[])
    assert values.shape == (0,)
    assert dx.shape == (0, 7, 2)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("radius", [1, 2, 5])
def test_fast_dtw_is_an_upper_bound_along_a_path(cost: str, radius: int) -> None:
    x, y = example(4, 31, 26)
    exact, near = dtw(x, y, cost=cost), dtw(x, y, cost=cost, radius=radius)
    assert (near >= exact - 1e-5).all()
    torch.testing.assert_close(dtw(x, y, cost=cost, radius=30), exact)
    value, path = fast.fast_path(x[0].detach().double(), y[0].detach().double(), cost, radius)
    assert path[0] == (0, 0)
    assert path[-1] == (30, 25)
    assert all((c - a, d - b) in {(0, 1), (1, 0), (1, 1)} for (a, b), (c, d) in itertools.pairwise(path))
    i, j = torch.tensor(path).unbind(1)
    along = reference.pairwise(x, y, cost)[0, i, j].sum()
    torch.testing.assert_close(torch.tensor(value, dtype=torch.float64), along)
    gradients = [torch.autograd.grad(total, (x, y), retain_graph=True) for total in (near[0], along)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 9), (4, 3), (5, 17), (33, 8), (16, 16), (15, 31)])
def test_fast_dtw_of_any_lengths(n: int, m: int) -> None:
    x, y = example(2, 33, 31)
    values = dtw(x, y, lengths=[(n, m), (33, 31)], radius=1)
    alone = dtw(x[:1, :n], y[:1, :m], radius=1)
    torch.testing.assert_close(values[:1], alone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 7)}, r"x is torch.float32 \[3, 7\]"),
        ({"x": torch.ones(3, 0, 2)}, r"\[3, 0, 2\]"),
        ({"y": torch.ones(2, 6, 2)}, r"y has shape \[2, 6, 2\], not \[3, M, 2\]"),
        ({"y": torch.ones(3, 6, 2, dtype=torch.float64)}, "y is torch.float64"),
        ({"cost": "cosine"}, "cost is 'cosine'"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"bandwidth": -2}, "bandwidth is -2"),
        ({"bandwidth": 0}, "pair 0 has 7 x 6 points"),
        ({"bandwidth": 0.05}, "bandwidth is 0.05, which leaves no path to the end of pair"),
        ({"bandwidth": 2, "lengths": [(7, 6), (7, 4), (3, 3)]}, "pair 1 has 7 x 4 points"),
        ({"lengths": [(7, 6)]}, r"lengths is torch.int64 \[1, 2\], not integers \[3, 2\]"),
        ({"lengths": [(7, 6), (8, 6), (1, 1)]}, r"lengths\[1\] is \[8, 6\]"),
        ({"lengths": [(7, 6), (7, 0), (1, 1)]}, r"lengths\[1\] is \[7, 0\]"),
        ({"lengths": torch.ones(3, 2)}, "lengths is torch.float32"),
        ({"backend": "fast"}, "backend is 'fast'"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_errors(change: dict, message: str, backend: str) -> None:
    x, y = (t.detach() for t in example())
    with pytest.raises(InputError, match=message):
        soft_dtw(**{"x": x, "y": y, "backend": backend} | change)


def test_errors_of_the_others() -> None:
    x, y = (t.detach() for t in example())
    for call, message in (
        (lambda: dtw(x, y, radius=0), "radius is 0"),
        (lambda: dtw(x, y, radius=1, bandwidth=3), "bandwidth 3"),
        (lambda: dtw(x, y, radius=1, backend="reference"), "no definition"),
        (lambda: soft_dtw_from_costs(x[0]), "costs is torch.float32"),
        (lambda: soft_dtw_from_costs(torch.ones(1, 4, 8), bandwidth=3), "pair 0 has 4 x 8"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("form", operators.FORMS[1:])
def test_operator_check(form: str) -> None:
    x, y = example(3, 3, 2, form=form)
    lengths = torch.tensor([(3, 2), (2, 2), (1, 2)])
    torch.library.opcheck(operator._forward, (x, y, lengths, "l2", 0.5, 0.6, False, -1, True, form))
    costs = torch.rand(2, 3, 2, device=x.device, requires_grad=True)
    torch.library.opcheck(operator._cost_forward, (costs, None, 0.5, 3.0, True, True, form))


def test_compile_and_export() -> None:
    inputs = example()

    def run(x: Tensor, y: Tensor) -> Tensor:
        return soft_dtw(x, y, gamma=0.1, bandwidth=4).square().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(*(torch.autograd.grad(form(*inputs), inputs) for form in (run, compiled)))

    class Distance(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor, lengths: Tensor) -> Tensor:
            return dtw(x, y, lengths=lengths)

    batch, time = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("time", min=2, max=512)
    lengths = torch.tensor([(7, 6), (5, 6), (1, 2)])
    shapes = ({0: batch, 1: time}, {0: batch}, {0: batch})
    arguments = (*(t.detach() for t in inputs), lengths)
    exported = torch.export.export(Distance(), arguments, dynamic_shapes=shapes)
    x, y = (t.detach() for t in example(4, 12, 6))
    more = torch.tensor([(12, 6), (5, 6), (1, 2), (9, 3)])
    torch.testing.assert_close(exported.module()(x, y, more), dtw(x, y, lengths=more))


def test_autocast_and_inference_mode_change_nothing() -> None:
    x, y = (t.detach() for t in example())
    exact = soft_dtw(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(soft_dtw(x, y), exact, rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(soft_dtw(x, y), exact, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cost", ["sqeuclidean", "l2", "l1"])
def test_near_points_far_from_the_origin_keep_their_distance(cost: str, dtype: torch.dtype) -> None:
    x = (torch.randn(2, 30, 5, dtype=torch.float64) * 3 + 1e4).to(dtype)
    near = x + 1e-3
    assert not dtw(x, x, cost=cost).any()
    torch.testing.assert_close(dtw(x, near, cost=cost), dtw(x, near, cost=cost, backend="reference"), rtol=1e-6, atol=0)
