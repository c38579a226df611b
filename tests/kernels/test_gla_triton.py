"""The Triton kernels of gated linear attention, in one direction and in both, against the definitions in float64."""

from __future__ import annotations

import operators
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.errors import InputError
from toolkit.kernels import bidirectional_gla as both_ways
from toolkit.kernels import gla as one_way
from toolkit.kernels._common.numerics import relative_error

pytestmark = pytest.mark.skipif("triton" not in operators.FORMS, reason="needs triton")
WAYS = pytest.mark.parametrize("ways", [1, 2])


def example(ways: int, T=33, B=1, H=1, K=8, V=12, decay=1.0, S=None, dtype=torch.float32) -> list[Tensor]:
    """q, k, v and the gate of each way; for one way the initial states, too."""
    tensors = [torch.randn(B, T, H, width) for width in (K, K, V)]
    tensors += [-decay * torch.rand(B, T, H, K) for _ in range(ways)]
    tensors += [torch.randn(B if S is None else S, H, K, V)] if ways == 1 else []
    return [x.to(dtype).requires_grad_() for x in tensors]


def outputs(ways: int, inputs: list[Tensor], form: str, bounds: list[int] | None = None) -> tuple[Tensor, ...]:
    inputs = [x.to(operators.device_of(form)) for x in inputs]
    packed = None if bounds is None else torch.tensor(bounds)
    if ways == 2:
        return (both_ways.bidirectional_gla(*inputs, cu_seqlens=packed, backend=form),)
    *sequence, first = inputs
    return one_way.gla(*sequence, initial_state=first, cu_seqlens=packed, backend=form)


def results(ways: int, inputs: list[Tensor], form: str, bounds: list[int] | None = None) -> list[Tensor]:
    """Outputs, and gradients for drawn gradients of them."""
    found = outputs(ways, inputs, form, bounds)
    draws = torch.Generator().manual_seed(1)
    grads = [torch.randn(x.shape, generator=draws).to(x) for x in found]
    wanted = [x for x in inputs if x.requires_grad]
    return [x.detach().cpu() for x in (*found, *torch.autograd.grad(found, wanted, grads))]


def check(ways: int, inputs: list[Tensor], bounds: list[int] | None = None, tolerance: float = 2e-6) -> None:
    doubles = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    pairs = zip(results(ways, inputs, "triton", bounds), results(ways, doubles, "reference", bounds), strict=True)
    measured = [relative_error(got, exact) for got, exact in pairs]
    assert max(measured) <= tolerance, measured  # NaN is not


@WAYS
@pytest.mark.parametrize("T", [1, 32, 65])
def test_lengths(ways, T):
    check(ways, example(ways, T))


@WAYS
@pytest.mark.parametrize(("K", "V"), [(1, 1), (40, 5), (100, 70)])
def test_widths(ways, K, V):
    """K and V of less than a tile, and of several."""
    check(ways, example(ways, 9, K=K, V=V))


@WAYS
def test_batch_and_heads(ways):
    check(ways, example(ways, 9, B=2, H=2))


@WAYS
@pytest.mark.parametrize("decay", [40.0, 1e30])
def test_decays(ways, decay):
    check(ways, example(ways, decay=decay))


@WAYS
def test_small_gradients_of_decays_keep_their_digits(ways):
    inputs = example(ways)
    with torch.no_grad():
        for gate in inputs[3 : 3 + ways]:
            gate.fill_(-40)
    check(ways, inputs)


@WAYS
def test_erasing_separates_the_tokens(ways):
    inputs = example(ways, T=70)
    with torch.no_grad():
        inputs[3][:, 37] = -torch.inf
        if ways == 2:
            inputs[4][:, 36] = -torch.inf
    o, *_ = outputs(ways, inputs, "triton")
    rest = [x[:, 37:] for x in inputs[: 3 + ways]]
    fresh, *_ = outputs(ways, [*rest, torch.zeros_like(inputs[4])] if ways == 1 else rest, "triton")
    assert relative_error(o[:, 37:], fresh) < 1e-6
    gradients = torch.autograd.grad(o[:, 37:].sum(), inputs)
    assert all(x.isfinite().all() for x in gradients)
    assert not any(x[:, :37].any() for x in (gradients if ways == 2 else gradients[:4]))


@WAYS
@pytest.mark.parametrize("bounds", [[0, 5, 6, 40, 61], [0, 0, 61, 61]])
def test_packed(ways, bounds):
    check(ways, example(ways, 61, S=len(bounds) - 1), bounds)


@WAYS
def test_packed_sequences_never_see_each_other(ways):
    """What is NaN in one sequence stays there."""
    inputs = example(ways, 61, S=3)
    with torch.no_grad():
        for x in inputs[: 3 + ways]:
            x[:, 20:41] = torch.nan
    found = results(ways, inputs, "triton", [0, 20, 41, 61])
    for x in (x for x in found if x.shape[1] == 61):
        assert x[:, :20].isfinite().all()
        assert x[:, 41:].isfinite().all()


@WAYS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(ways, dtype):
    inputs = example(ways, 20, dtype=dtype)
    found = results(ways, inputs, "triton")
    assert [x.dtype for x in found] == [dtype, *([torch.float32] if ways == 1 else []), *[dtype] * 5]
    exact = results(ways, [x.detach().double().requires_grad_() for x in inputs], "reference")
    assert max(map(relative_error, found, exact)) <= 1e-2


@WAYS
def test_types_may_differ(ways):
    inputs = example(ways, 20)
    inputs[0] = inputs[0].detach().bfloat16().requires_grad_()
    inputs[3] = inputs[3].detach().half().requires_grad_()
    check(ways, inputs, tolerance=1e-2)


@WAYS
def test_strange_memory(ways):
    inputs = [x.detach() for x in example(ways, 20, H=2)]
    inputs = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    inputs[3] = inputs[3][:, :, :1, :1].expand_as(inputs[3])
    check(ways, [x.requires_grad_() for x in inputs])


@WAYS
@pytest.mark.parametrize("wanted", [1, 3])
def test_gradient_of_one_input(ways, wanted):
    check(ways, [x.detach().requires_grad_(number == wanted) for number, x in enumerate(example(ways, 9))])


def test_gradient_of_the_final_state_alone():
    inputs = example(1, 9)
    gradients = [
        torch.autograd.grad(outputs(1, x, form)[1].square().sum(), x[1:])
        for x, form in ((inputs, "triton"), ([x.detach().double().requires_grad_() for x in inputs], "reference"))
    ]
    assert max(relative_error(got, exact) for got, exact in zip(*gradients, strict=True)) <= 2e-6


def test_without_initial_state():
    *sequence, _ = (x.detach() for x in example(1, 9))
    got = one_way.gla(*(x.to(operators.device_of("triton")) for x in sequence), backend="triton")
    assert all(relative_error(x.cpu(), y) < 1e-6 for x, y in zip(got, one_way.gla(*sequence), strict=True))


@WAYS
@pytest.mark.parametrize(("B", "T"), [(0, 5), (2, 0)])
def test_nothing_to_do(ways, B, T):
    inputs = example(ways, T, B)
    o, *others = results(ways, inputs, "triton")
    gradients = others[1:] if ways == 1 else others
    assert o.shape == (B, T, 1, 12)
    assert [x.shape for x in gradients] == [x.shape for x in inputs]
    if ways == 1:  # no token changes the states
        assert torch.equal(others[0], inputs[4])
        assert gradients[4].isfinite().all()


@WAYS
def test_a_tensor_that_is_passed_twice(ways):
    x = torch.randn(1, 9, 1, 4, requires_grad=True)
    gates = [-torch.rand(1, 9, 1, 4)] * ways
    found = []
    for form in ("reference", "triton"):
        o, *_ = outputs(ways, [x, x, x, *gates, *([torch.zeros(1, 1, 4, 4)] if ways == 1 else [])], form)
        found.append(torch.autograd.grad(o.square().sum(), x)[0])
    assert relative_error(found[1], found[0]) < 1e-5


def test_operator_check():
    device = operators.device_of("triton")
    q, k, v, g, state = (x.detach().to(device).requires_grad_() for x in example(1, 5, K=4, V=6))
    torch.library.opcheck(one_way._forward, (q, k, v, g, state, None, 0.5, "triton"))
    torch.library.opcheck(both_ways._forward, (q, k, v, g, g, None, 0.5, "triton"))


def test_fake_tensors_of_a_gpu_that_is_not_there():
    with FakeTensorMode():
        q, k, v, g, state = (torch.empty(x.shape, device="cuda") for x in example(1))
        o, final, saved = one_way._forward(q, k, v, g, state, None, 0.5, "triton")
        gradients = one_way._backward(o, final, saved, q, k, v, g, state, None, 0.5, "triton")
        assert [x.shape for x in gradients] == [x.shape for x in (q, k, v, g, state)]
        o, saved = both_ways._forward(q, k, v, g, g, None, 0.5, "triton")
        gradients = both_ways._backward(o, saved, q, k, v, g, g, None, 0.5, "triton")
    assert [x.shape for x in gradients] == [x.shape for x in (q, k, v, g, g)]
    assert o.device.type == "cuda"


@WAYS
def test_widths_that_are_not_served(ways):
    with pytest.raises(InputError, match="for triton, but K = 300 and V = 12 exceed K <= 256, V <= 512"):
        results(ways, example(ways, K=300), "triton")
