"""The fast forms of gated attention against its definition in float64."""

from __future__ import annotations

import operators
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.errors import InputError
from toolkit.kernels import gated_sdpa as operator
from toolkit.kernels.gated_sdpa import gated_sdpa, reference

NAMES = ("q", "k", "v", "gate")
FAST = operators.FORMS[1:]


def example(B=2, T=9, S=9, H=4, Hk=2, K=8, V=8, headwise=False, dtype=torch.float32, form="torch") -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    shapes = (B, T, H, K), (B, S, Hk, K), (B, S, Hk, V), (B, T, H, 1 if headwise else V)
    return [torch.randn(s, generator=draws).to(operators.device_of(form), dtype).requires_grad_() for s in shapes]


def results(inputs: list[Tensor], **options) -> list[Tensor]:
    y = gated_sdpa(*inputs, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def check(inputs: list[Tensor], form: str = "torch", tolerance: float = 2e-6, **options) -> None:
    exact = results([x.detach().double().requires_grad_() for x in inputs], backend="reference", **options)
    for got, true in zip(results(inputs, backend=form, **options), exact, strict=True):
        assert got.isfinite().all()
        assert (got.double() - true).norm() <= tolerance * true.norm().clamp_min(1.0)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("headwise", [False, True])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (9, 9), (33, 33), (13, 29), (29, 13), (1, 70), (7, 1)])
def test_lengths(T: int, S: int, headwise: bool, causal: bool, form: str) -> None:
    check(example(T=T, S=S, headwise=headwise, form=form), form, causal=causal)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("H", "Hk", "K", "V"), [(4, 4, 8, 8), (6, 1, 8, 24), (4, 2, 40, 16), (1, 1, 1, 1), (2, 1, 100, 3), (2, 1, 4, 150)]
)
def test_heads_and_widths(H: int, Hk: int, K: int, V: int, causal: bool, form: str) -> None:
    for headwise in (False, True):
        inputs = example(T=11, S=17, H=H, Hk=Hk, K=K, V=V, headwise=headwise, form=form)
        check(inputs, form, causal=causal, scale=0.3)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(9, 13), (1, 13), (4, 9, 13), (2, 1, 9, 13), (2, 4, 9, 13), (2, 1, 1, 13)])
def test_mask(shape: tuple[int, ...], causal: bool, form: str) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.6
    check(example(S=13, form=form), form, mask=mask.to(operators.device_of(form)), causal=causal)


@pytest.mark.parametrize("backend", operators.FORMS)
def test_a_query_that_sees_no_key_gives_zero(backend: str) -> None:
    inputs = example(form=backend)
    mask = torch.ones(9, 9, dtype=torch.bool, device=inputs[0].device)
    mask[3] = False
    y, dq, *others = results(inputs, mask=mask, backend=backend)
    assert not y[:, 3].any()
    assert not dq[:, 3].any()
    assert all(x.isfinite().all() for x in others)
    y, dq, *_ = results(example(T=9, S=4, form=backend), causal=True, backend=backend)
    assert not y[:, :5].any()
    assert not dq[:, :5].any()
    assert y[:, 5].any()


def test_causal_aligns_the_last_query_with_the_last_key() -> None:
    q, k, v, gate = (x.detach() for x in example(T=5, S=9))
    y = gated_sdpa(q, k, v, gate, causal=True)
    for t in range(5):
        seen = t + 9 - 5 + 1
        alone = gated_sdpa(q[:, t : t + 1], k[:, :seen], v[:, :seen], gate[:, t : t + 1])
        torch.testing.assert_close(y[:, t : t + 1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of the interpreter, which stays exact
def test_open_gate_is_attention_and_shut_gate_is_zero(form: str) -> None:
    q, k, v, gate = example(Hk=4, form=form)
    plain = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(gated_sdpa(q, k, v, torch.full_like(gate, 100.0), backend=form), plain)
    shut = torch.full_like(gate, -200.0).requires_grad_()
    y = gated_sdpa(q, k, v, shut, backend=form)
    gradients = torch.autograd.grad(y.sum(), (q, k, v, shut))
    assert not any(x.any() for x in (y, *gradients))


def test_large_scores_stay_finite() -> None:
    q, k, v, gate = example(T=8, S=12)
    inputs = [(1e4 * x.detach()).requires_grad_() for x in (q, k)] + [v, gate]
    assert all(x.isfinite().all() for x in results(inputs, causal=True))


@pytest.mark.parametrize("headwise", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_twice(headwise: bool, masked: bool) -> None:
    inputs = example(1, 3, 4, 2, 1, 3, 2, headwise, torch.float64)
    mask = torch.tensor([True, False, True, True]) if masked else None
    assert torch.autograd.gradcheck(lambda *t: reference.gated_sdpa(*t, 0.5, True, mask), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: reference.gated_sdpa(*t, 0.5, True, mask), inputs)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("T", [33, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_low_precision(T: int, dtype: torch.dtype, tolerance: float, form: str) -> None:
    inputs = example(T=T, S=33, dtype=dtype, form=form)
    got = results(inputs, causal=True, backend=form)
    exact = results([x.detach().double().requires_grad_() for x in inputs], causal=True)
    for value, true in zip(got, exact, strict=True):
        assert value.dtype == dtype
        assert (value.double() - true).norm() <= tolerance * true.norm()


@pytest.mark.parametrize("form", FAST)
def test_layouts(form: str) -> None:
    inputs = example(T=7, S=12, form=form)
    exact = results(inputs, causal=True, backend=form)
    for layout in (
        lambda x: x.detach().transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.stack([x.detach(), x.detach()], -1)[..., 0],
    ):
        found = results([layout(x).requires_grad_() for x in inputs], causal=True, backend=form)
        torch.testing.assert_close(found, exact)
    q, k, v, gate = (x.detach() for x in inputs)
    one = gate[:, :1, :1].expand_as(gate)
    torch.testing.assert_close(*(gated_sdpa(q, k, v, g, backend=form) for g in (one, one.contiguous())))


@pytest.mark.parametrize("sizes", [(0, 3, 3), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("backend", operators.FORMS)
def test_nothing_to_do(sizes: tuple[int, int, int], backend: str) -> None:
    inputs = example(*sizes, form=backend)
    y, *gradients = results(inputs, causal=True, backend=backend)
    assert y.shape == (*sizes[:2], 4, 8)
    assert not any(x.any() for x in (y, *gradients))


@pytest.mark.parametrize("wanted", range(4))
def test_gradient_of_one_input(wanted: int) -> None:
    inputs = [x.detach() for x in example(S=12)]
    inputs[wanted].requires_grad_()
    runs = [gated_sdpa(*inputs, causal=True, backend=b).square().sum() for b in ("torch", "reference")]
    torch.testing.assert_close(*(torch.autograd.grad(y, inputs[wanted]) for y in runs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(2, 9, 4)}, r"q has shape \[2, 9, 4\]"),
        ({"k": torch.ones(2, 9, 3, 8)}, "Hk a divisor of 4"),
        ({"v": torch.ones(2, 8, 2, 8)}, r"v has shape \[2, 8, 2, 8\]"),
        ({"gate": torch.ones(2, 9, 4, 5)}, "gate has shape"),
        ({"v": torch.ones(2, 9, 2, 8, dtype=torch.bfloat16)}, "v is torch.bfloat16"),
        ({"gate": torch.ones(2, 9, 4, 1, dtype=torch.int64)}, "gated_sdpa does not take torch.int64"),
        ({"gate": torch.ones(2, 9, 4, 1, device="meta")}, "on cpu and on meta"),
        ({"mask": torch.ones(9, 9)}, "mask is torch.float32"),
        ({"mask": torch.ones(9, 8, dtype=torch.bool)}, r"mask is torch.bool \[9, 8\]"),
        ({"backend": "fast"}, "backend is 'fast'"),
        ({"gate": torch.ones(2, 9, 4, 1, dtype=torch.float64), "backend": "torch"}, "computes in float32"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = dict(zip(NAMES, (x.detach() for x in example()), strict=True)) | change
    with pytest.raises(InputError, match=message):
        gated_sdpa(**arguments)


@pytest.mark.parametrize("T", [5, 9])
def test_operator_check(T: int) -> None:
    mask = torch.ones(T, 9, dtype=torch.bool).tril_() if T == 9 else None
    torch.library.opcheck(operator._forward, (*example(T=T), 0.5, True, mask, "torch"))


@pytest.mark.skipif("triton" not in FAST, reason="needs triton")
@pytest.mark.parametrize("headwise", [False, True])
def test_operator_check_of_the_gate(headwise: bool) -> None:
    *_, v, gate = example(Hk=4, headwise=headwise, form="triton")
    torch.library.opcheck(operator._gate_forward, (v, gate, "triton"))
    plain = v.detach(), v.detach(), gate.detach()
    torch.library.opcheck(operator._gate_backward, (*plain, "triton"))


def test_second_derivative_of_the_fast_form() -> None:
    inputs = example(1, 3, 4)
    runs = []
    for form in ("torch", "reference"):
        gradients = torch.autograd.grad(gated_sdpa(*inputs, backend=form).square().sum(), inputs, create_graph=True)
        runs.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs))
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-5)


def test_fake_tensors_of_a_gpu_that_is_not_there() -> None:
    with FakeTensorMode():
        o, gate = torch.empty(2, 9, 4, 8, device="cuda"), torch.empty(2, 9, 4, 1, device="cuda")
        y = operator._gate_forward(o, gate, "triton")
        gradients = operator._gate_backward(y, o, gate, "triton")
    assert [(t.device.type, t.shape) for t in (y, *gradients)] == [("cuda", t.shape) for t in (o, o, gate)]


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("T", [7, 9])
def test_compile_and_export(backend: str, T: int) -> None:
    inputs = example(T=T)

    def run(*inputs: Tensor) -> Tensor:
        return gated_sdpa(*inputs, causal=True, backend=backend).square().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(form(*inputs), inputs) for form in (run, compiled)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)

    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
            return gated_sdpa(q, k, v, gate, causal=True, backend=backend)

    time = torch.export.Dim("time", min=2, max=4096)
    shapes = ({1: time}, {1: time}, {1: time}, {1: time}) if T == 9 else ({1: time}, {}, {}, {1: time})
    exported = torch.export.export(Layer(), tuple(x.detach() for x in inputs), dynamic_shapes=shapes)
    longer = [x.detach() for x in example(T=40, S=40 if T == 9 else 9)]
    torch.testing.assert_close(exported.module()(*longer), gated_sdpa(*longer, causal=True), rtol=1e-5, atol=1e-5)


def test_autocast_changes_nothing() -> None:
    inputs = [x.detach() for x in example()]
    exact = gated_sdpa(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gated_sdpa(*inputs), exact, rtol=0, atol=0)
