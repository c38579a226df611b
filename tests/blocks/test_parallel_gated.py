"""The parallel gated unit against its definition, one step after the other, on both of its ways of computing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from toolkit.blocks import parallel_gated
from toolkit.blocks.parallel_gated import ParallelGatedUnit, evaluation_matrices
from toolkit.errors import InputError

SHAPES = [  # groups, length of the unit, steps, channels in and out
    (None, 7, 7, 5, 2),
    (3, 7, 7, 3, 4),
    (2, 9, 4, 1, 3),
    (None, 2, 1, 2, 3),
    (None, 2, 2, 2, 3),
    (None, 50, 50, 3, 4),
    (3, 20, 13, 2, 3),
    (None, 97, 97, 4, 1),
]


def unit_of(monkeypatch, way, *sizes) -> ParallelGatedUnit:
    monkeypatch.setattr(parallel_gated, "DIRECT_NUMBERS", 1 << 30 if way == "direct" else 0)
    groups, length, _, in_dim, dim = sizes
    return ParallelGatedUnit(in_dim, dim, length, groups)


def loop(unit: ParallelGatedUnit, x: Tensor) -> Tensor:
    """The definition for ``[G, N, T, C]`` or ``[N, T, C]``."""
    grouped, outputs = x if x.dim() == 4 else x[None], []
    for step in range(x.shape[-2]):
        history = unit.history.bias[:, 0]
        for lag in range(1, step + 1):
            history = history + grouped[:, :, step - lag] @ unit.history.weight[:, lag - 1]
        seen = grouped[:, :, step] @ unit.gate_input.weight + history @ unit.gate_history.weight + unit.gate_input.bias
        openness, candidate = seen[..., : unit.dim].sigmoid(), seen[..., unit.dim :].tanh()
        outputs.append(openness * history + (1 - openness) * candidate)
    return torch.stack(outputs, dim=2).view(*x.shape[:-1], unit.dim)


def inputs(sizes) -> Tensor:
    groups, _, steps, in_dim, _ = sizes
    return torch.randn(*((groups,) if groups else ()), 3, steps, in_dim, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("way", ["direct", "values"])
@pytest.mark.parametrize("sizes", SHAPES)
def test_outputs_and_gradients(sizes, way, monkeypatch) -> None:
    unit = unit_of(monkeypatch, way, *sizes).double()
    x = inputs(sizes)
    leaves = {"x": x, **dict(unit.named_parameters())}
    found, expected = unit(x), loop(unit, x)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    for name, one, other in zip(
        leaves,
        torch.autograd.grad(found, list(leaves.values()), upstream, materialize_grads=True, allow_unused=True),
        torch.autograd.grad(expected, list(leaves.values()), upstream, materialize_grads=True, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_second_gradients(monkeypatch) -> None:
    for way in ("direct", "values"):
        unit = unit_of(monkeypatch, way, 2, 5, 5, 2, 2).double()
        assert torch.autograd.gradgradcheck(unit, (inputs((2, 5, 5, 2, 2)),))


def test_float32_keeps_its_digits_on_long_sequences() -> None:
    unit, x = ParallelGatedUnit(4, 4, 1440), torch.randn(2, 1440, 4)
    found, expected = unit(x), unit.double()(x.double())
    assert unit.history._evaluation is not None
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_the_faster_way_is_taken() -> None:
    assert ParallelGatedUnit(5, 8, 7, 7).history._evaluation is None
    assert ParallelGatedUnit(5, 256, 7).history._evaluation is None
    assert ParallelGatedUnit(32, 32, 720).history._evaluation is not None


@pytest.mark.parametrize("way", ["direct", "values"])
def test_causal_and_reaches_every_step(way, monkeypatch) -> None:
    unit, x = unit_of(monkeypatch, way, None, 40, 40, 2, 3).double(), torch.randn(1, 40, 2, dtype=torch.float64)
    reach = torch.autograd.functional.jacobian(lambda value: unit(value).sum((0, 2)), x).abs().sum((1, 3))  # [out, in]
    future = torch.ones(40, 40).triu(1).bool()
    assert reach[future].max() < 1e-12
    assert reach[~future].min() > 1e-6


def test_groups_are_units_side_by_side() -> None:
    together, x = ParallelGatedUnit(3, 4, 6, num_groups=2), torch.randn(2, 5, 6, 3)
    for group in range(2):
        alone = ParallelGatedUnit(3, 4, 6)
        alone.load_state_dict({name: value[group : group + 1] for name, value in together.state_dict().items()})
        torch.testing.assert_close(together(x)[group], alone(x[group]))


def test_polynomials_at_their_points() -> None:
    """The two matrices evaluate at the roots of z^M = -i, and their transposes come back."""
    outer, inner = evaluation_matrices(11)
    size_1, size_2 = outer.shape[1], inner.shape[1] // 2
    points = size_1 * size_2
    coefficients = torch.randn(points, dtype=torch.float64)
    half = (outer @ coefficients.view(size_1, size_2)).view(size_1, 2 * size_2, 1)
    real, imaginary = torch.bmm(inner, half).view(points, 2).unbind(1)
    order = (torch.arange(size_1)[:, None] + size_1 * torch.arange(size_2)).flatten()
    z = torch.exp(-2j * torch.pi * (order.double() + 0.25) / points)
    torch.testing.assert_close(z**points, torch.full_like(z, -1j))
    torch.testing.assert_close(
        torch.complex(real, imaginary), (z[:, None] ** torch.arange(points)) @ coefficients.cdouble()
    )
    back = torch.bmm(inner.transpose(1, 2), torch.stack((real, imaginary), 1).view(size_1, 2 * size_2, 1))
    torch.testing.assert_close((outer.t() @ back.view(2 * size_1, size_2)).flatten() / points, coefficients)


def test_starts_as_a_convolution_does() -> None:
    unit = ParallelGatedUnit(5, 40, 21)
    bounds = {"history": (5 * 20) ** -0.5, "gate_input": 45**-0.5, "gate_history": 45**-0.5}
    for name, parameter in unit.named_parameters():
        bound = bounds[name.split(".")[0]]
        assert 0.8 * bound < parameter.abs().max() <= bound, name


@pytest.mark.parametrize("way", ["direct", "values"])
def test_casts_autocast_and_copies(way, monkeypatch) -> None:
    unit, x = unit_of(monkeypatch, way, None, 30, 30, 4, 8), torch.randn(2, 30, 4)
    expected = unit(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = unit(x)
        rounded.float().sum().backward()
        assert unit(x[:, :1]).shape == (2, 1, 8)
    assert (rounded - expected).norm() < 0.02 * expected.norm()
    assert torch.equal(copy.deepcopy(unit)(x), expected)
    back = unit.bfloat16().double()
    with torch.no_grad():
        torch.testing.assert_close(back(x.double()), loop(back, x.double()), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("way", ["direct", "values"])
def test_exports(way, monkeypatch) -> None:
    unit, x = unit_of(monkeypatch, way, None, 30, 30, 4, 8).eval(), torch.randn(2, 30, 4)
    exported = torch.export.export(unit, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    other = torch.randn(5, 30, 4)
    torch.testing.assert_close(exported(other), unit(other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2, 5), "in_dim is 0. It must be at least 1"),
        ((2, -1, 5), "dim is -1"),
        ((2, 2, 1), "length is 1. It must be at least 2"),
        ((2, 2, 5, -3), "num_groups is -3"),
    ],
)
def test_rejects_sizes(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        ParallelGatedUnit(*arguments)


@pytest.mark.parametrize(
    ("groups", "shape", "message"),
    [
        (None, (2, 6, 3), "a sequence of 6 steps is longer than length 5. Raise length"),
        (None, (2, 5, 4), r"shape \[2, 5, 4\]. Give \[N, T, C\] and C = 3"),
        (None, (1, 2, 5, 3), r"shape \[1, 2, 5, 3\]. Give \[N, T, C\]"),
        (2, (2, 5, 3), r"Give \[G, N, T, C\] with G = 2"),
        (2, (3, 2, 5, 3), r"Give \[G, N, T, C\] with G = 2"),
    ],
)
def test_rejects_inputs(groups, shape, message) -> None:
    with pytest.raises(InputError, match=message):
        ParallelGatedUnit(3, 2, 5, groups)(torch.randn(shape))
