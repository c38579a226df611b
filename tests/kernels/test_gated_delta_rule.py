"""The gated delta rule in chunks against its definition in float64."""

from __future__ import annotations

import operators
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.errors import InputError
from toolkit.kernels import gated_delta_rule as operator
from toolkit.kernels._common import chunks
from toolkit.kernels._common.numerics import relative_error
from toolkit.kernels.gated_delta_rule import gated_delta_rule

NAMES = ("q", "k", "v", "g", "beta", "initial_state")
FAST = operators.FORMS[1:]


@pytest.fixture(autouse=True)
def _one_thread():
    """Small products gain nothing from a second thread, and lose much where it is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def example(B=2, T=70, H=2, K=8, V=12, decay=0.2, S=None, dtype=torch.float32) -> list[Tensor]:
    q, k = torch.randn(2, B, T, H, K)
    g, beta = torch.rand(2, B, T, H)
    state = torch.randn(B if S is None else S, H, K, V)
    tensors = q, torch.nn.functional.normalize(k, dim=-1), torch.randn(B, T, H, V), -decay * g, beta, state
    return [x.to(dtype).requires_grad_() for x in tensors]


def results(inputs: list[Tensor], bounds: list[int] | None = None, form: str = "torch", **options) -> dict[str, Tensor]:
    """Outputs and gradients for drawn gradients of the outputs."""
    inputs = [x.detach().to(operators.device_of(form)).requires_grad_() for x in inputs]
    *sequence, state = inputs
    packed = None if bounds is None else torch.tensor(bounds, device=state.device)
    o, final = gated_delta_rule(*sequence, initial_state=state, cu_seqlens=packed, backend=form, **options)
    draws = torch.Generator().manual_seed(1)
    do, dfinal = (torch.randn(x.shape, generator=draws).to(x) for x in (o, final))
    gradients = torch.autograd.grad((o, final), inputs, (do, dfinal))
    found = dict(zip(("o", "final_state", *(f"d{name}" for name in NAMES)), (o, final, *gradients), strict=True))
    return {name: x.detach().cpu() for name, x in found.items()}


def exact_results(inputs: list[Tensor], bounds: list[int] | None = None, **options) -> dict[str, Tensor]:
    return results([x.detach().double() for x in inputs], bounds, "reference", **options)


def errors(got: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    assert all(x.isfinite().all() for x in got.values())
    return {name: relative_error(got[name], x) for name, x in exact.items()}


def check(inputs: list[Tensor], bounds: list[int] | None = None, tolerance: float = 2e-6, **options) -> None:
    got = results(inputs, bounds, **options)
    options.pop("form", None)
    measured = errors(got, exact_results(inputs, bounds, **options))
    assert max(measured.values()) <= tolerance, measured


@pytest.mark.parametrize("T", [1, 2, 3, 16, 31, 32, 33, 64, 65, 530])
def test_lengths(T: int) -> None:
    check(example(T=T))


@pytest.mark.parametrize(("K", "V"), [(1, 1), (1, 5), (8, 1), (40, 16), (100, 24)])
def test_widths(K: int, V: int) -> None:
    # A key of one number overwrites the whole state: what is left of the first one is a small difference.
    check(example(K=K, V=V, T=41, B=1, H=1), tolerance=1e-5 if K == 1 else 2e-6)


@pytest.mark.parametrize("decay", [0.0, 1.0, 40.0, 400.0, 1e30])
def test_decays(decay: float) -> None:
    check(example(decay=decay))


@pytest.mark.parametrize("form", FAST)
def test_small_gradients_of_decays_keep_their_digits(form: str) -> None:
    """Every gate nearly shut: dg is 1e-17 of the others, and still exact."""
    inputs = example(B=1, T=18, H=1)
    with torch.no_grad():
        inputs[3].fill_(-40)
    check(inputs, form=form, qk_l2norm=True)


def test_decays_mixed_in_one_batch() -> None:
    inputs = example(B=6, T=96, H=1)
    with torch.no_grad():
        for row, total in enumerate((1, 40, 120, 175, 400, 4000)):
            inputs[3][row] = -torch.rand(96, 1) * 2 * total / chunks.CHUNK
    check(inputs)


def test_negative_eigenvalues() -> None:
    inputs = example()
    with torch.no_grad():
        inputs[4].mul_(2)
    check(inputs)


def test_one_key_for_all_tokens() -> None:
    """The worst matrix to invert: powers of its strict part grow to 1e8 before they vanish."""
    inputs = example()
    with torch.no_grad():
        inputs[1].copy_(inputs[1][:, :1])
        inputs[3].zero_()
        inputs[4].fill_(1)
    check(inputs)


@pytest.mark.parametrize("scale", [0.3, -1.0, 0.0])
def test_normalised_queries_and_keys(scale: float) -> None:
    inputs = example()
    with torch.no_grad():
        inputs[1].mul_(7)
        inputs[1][0, 3] = 0
    check(inputs, qk_l2norm=True, scale=scale)


@pytest.mark.parametrize("chunk", [8, 16, 64, 128])
def test_chunk_length_does_not_matter(chunk: int, monkeypatch) -> None:
    inputs = example(T=150)
    exact = results(inputs)
    monkeypatch.setattr(chunks, "chunk_length", lambda T, S: chunk)
    measured = errors(results(inputs), exact)
    assert max(measured.values()) <= 2e-6, measured


@pytest.mark.parametrize("bounds", [[0, 5, 6, 40, 61], [0, 0, 61, 61], [0, 61], [0, 1, 2, 3, 61], [0, 33, 61]])
@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_packed_equals_separate(bounds: list[int], decay: float) -> None:
    check(example(B=1, T=61, S=len(bounds) - 1, decay=decay), bounds)


def test_packed_over_several_tiles() -> None:
    check(example(B=1, T=580, S=4), [0, 3, 540, 541, 580])


def test_batch_walked_in_groups(monkeypatch) -> None:
    monkeypatch.setattr(chunks, "GROUP", 40 * 2 * 12 * 2)
    check(example(B=5, T=40))


@pytest.mark.parametrize("split", [1, 31, 64])
def test_split_with_the_state_handed_over(split: int) -> None:
    inputs = example()
    *sequence, state = inputs
    left, middle = gated_delta_rule(*(x[:, :split] for x in sequence), initial_state=state)
    right, final = gated_delta_rule(*(x[:, split:] for x in sequence), initial_state=middle)
    o, whole = gated_delta_rule(*sequence, initial_state=state)
    halves, at_once = (torch.cat([left, right], 1), final), (o, whole)
    torch.testing.assert_close(halves, at_once, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(sum(x.square().sum() for x in run), inputs) for run in (halves, at_once)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", [0, 1, 37, 64, 69])
@pytest.mark.parametrize("erase", [-torch.inf, -1e30, -200.0])
def test_erasing_makes_the_past_irrelevant(cut: int, erase: float) -> None:
    inputs = example()
    with torch.no_grad():
        inputs[3][:, cut] = erase
    o, final = gated_delta_rule(*inputs[:5], initial_state=inputs[5])
    fresh, _ = gated_delta_rule(*(x[:, cut:] for x in inputs[:5]))
    torch.testing.assert_close(o[:, cut:], fresh, rtol=1e-5, atol=1e-5)
    *gradients, dstate = torch.autograd.grad(o[:, cut:].sum() + final.sum(), inputs)
    assert all(x.isfinite().all() for x in (*gradients, dstate))
    assert not any(x[:, :cut].any() for x in gradients)
    assert not gradients[3][:, cut].any()
    assert not dstate.any()


def test_padding_leaves_the_state() -> None:
    q, k, v, g, beta, state = (x.detach() for x in example(T=50))
    k[:, 30:], g[:, 30:] = 0, 0
    _, padded = gated_delta_rule(q, k, v, g, beta, initial_state=state)
    _, cut = gated_delta_rule(*(x[:, :30] for x in (q, k, v, g, beta)), initial_state=state)
    torch.testing.assert_close(padded, cut, rtol=1e-6, atol=1e-6)


def test_layouts() -> None:
    inputs = example(B=3, T=40)
    exact = results(inputs)
    strange = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in inputs]
    o, final = gated_delta_rule(*strange[:5], initial_state=strange[5])
    draws = torch.Generator().manual_seed(1)
    do, dfinal = (torch.randn(x.shape, generator=draws) for x in (o, final))
    gradients = torch.autograd.grad((o, final), strange, (do, dfinal))
    measured = errors(dict(zip(exact, (o, final, *gradients), strict=True)), exact)
    assert max(measured.values()) <= 1e-6, measured
    q, k, v, g, beta, _ = (x.detach() for x in inputs)
    expanded, contiguous = g[:1, :, :1].expand_as(g), g[:1, :, :1].expand_as(g).contiguous()
    torch.testing.assert_close(gated_delta_rule(q, k, v, expanded, beta), gated_delta_rule(q, k, v, contiguous, beta))
    (dq,) = torch.autograd.grad(gated_delta_rule(*inputs[:5])[0].sum(), inputs[:1])  # the gradient is expanded
    (want,) = torch.autograd.grad(gated_delta_rule(*inputs[:5], backend="reference")[0].sum(), inputs[:1])
    torch.testing.assert_close(dq, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_low_precision(dtype: torch.dtype, tolerance: float) -> None:
    inputs = [x.detach().to(dtype) for x in example(T=100)]
    got = results(inputs)
    assert got["final_state"].dtype == torch.float32
    assert all(got[name].dtype == dtype for name in got if name != "final_state")
    measured = errors(got, exact_results(inputs))
    assert max(measured.values()) <= tolerance, measured
    assert measured["final_state"] <= 1e-6


def test_gates_of_another_type() -> None:
    inputs = example()
    with torch.no_grad():
        for position in (0, 1, 2, 4):
            inputs[position] = inputs[position].bfloat16()
    got = results(inputs)
    assert (got["o"].dtype, got["dg"].dtype, got["dbeta"].dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert max(errors(got, exact_results(inputs)).values()) <= 1e-2


@pytest.mark.parametrize("wanted", NAMES)
def test_gradient_of_one_input(wanted: str) -> None:
    inputs = {name: x.detach() for name, x in zip(NAMES, example(), strict=True)}
    inputs[wanted].requires_grad_()
    runs = [gated_delta_rule(**inputs, backend=form)[0] for form in ("torch", "reference")]
    torch.testing.assert_close(
        *(torch.autograd.grad(o.square().sum(), inputs[wanted])[0] for o in runs), rtol=1e-4, atol=1e-4
    )


def test_gradient_of_the_final_state_alone() -> None:
    inputs = example()
    runs = [gated_delta_rule(*inputs[:5], initial_state=inputs[5], backend=form)[1] for form in ("torch", "reference")]
    gradients = [torch.autograd.grad(s.square().sum(), inputs, allow_unused=True) for s in runs]
    assert gradients[0][0] is None or not gradients[0][0].any()
    torch.testing.assert_close(gradients[0][1:], gradients[1][1:], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("triton" not in FAST, reason="triton is not installed")
class TestTriton:
    """Small shapes, because interpreted kernels are slow; the golden cases add larger ones."""

    @pytest.mark.parametrize("T", [1, 16, 33])
    def test_lengths(self, T: int) -> None:
        check(example(B=1, T=T, H=1), form="triton")

    @pytest.mark.parametrize(("K", "V"), [(1, 1), (24, 40)])
    def test_widths(self, K: int, V: int) -> None:
        check(example(B=1, T=9, H=2, K=K, V=V), form="triton", qk_l2norm=K > 1, tolerance=1e-5 if K == 1 else 2e-6)

    @pytest.mark.parametrize("decay", [0.2, 400.0])
    def test_packed(self, decay: float) -> None:
        check(example(B=1, T=40, H=1, S=4, decay=decay), [0, 3, 3, 36, 40], form="triton")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_types(self, dtype: torch.dtype) -> None:
        inputs = [x.detach().to(dtype) for x in example(B=1, T=40, H=1)]
        got = results(inputs, form="triton")
        assert got["final_state"].dtype == torch.float32
        assert all(got[name].dtype == dtype for name in got if name != "final_state")
        measured = errors(got, exact_results(inputs))
        assert max(measured.values()) <= 2e-2, measured
        assert max(error for name, error in measured.items() if name not in ("dg", "dbeta")) <= 1e-2, measured

    def test_erasing_gives_exact_zeros(self) -> None:
        inputs = [x.detach().to(operators.device_of("triton")) for x in example(B=1, T=36, H=1)]
        inputs[3][:, 20] = -torch.inf
        inputs = [x.requires_grad_() for x in inputs]
        o, final = gated_delta_rule(*inputs[:5], initial_state=inputs[5], backend="triton")
        *gradients, dstate = torch.autograd.grad(o[:, 20:].sum() + final.sum(), inputs)
        assert all(x.isfinite().all() for x in (*gradients, dstate))
        assert not any(x[:, :20].any() for x in gradients)
        assert not gradients[3][:, 20].any()
        assert not dstate.any()

    def test_strange_memory_and_gradients_that_nobody_wants(self) -> None:
        device = operators.device_of("triton")
        q, k, v, g, beta, _ = (x.detach().to(device) for x in example(B=2, T=18, H=1))
        k = k.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
        one_gate = g[:1].expand_as(g)
        found = []
        for form in ("triton", "reference"):
            _, final = gated_delta_rule(q, k, v, one_gate, beta, backend=form)
            found.append((final.detach(), *torch.autograd.grad(final.sum(), [k])))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("K", "V", "dtype"), [(65, 8, torch.float32), (129, 8, torch.bfloat16), (8, 513, torch.bfloat16)]
    )
    def test_widths_that_do_not_fit(self, K: int, V: int, dtype: torch.dtype) -> None:
        inputs = [x.detach().to(dtype) for x in example(1, 2, 1, K, V)]
        with pytest.raises(InputError, match=f"K = {K} and V = {V} exceed"):
            gated_delta_rule(*inputs[:5], backend="triton")


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
@pytest.mark.parametrize("form", FAST)
def test_nothing_to_do(shape: tuple[int, int], form: str) -> None:
    inputs = example(*shape)
    found = results(inputs, form=form)
    assert found["o"].shape == (*shape, 2, 12)
    torch.testing.assert_close(found["final_state"], inputs[5].detach())
    assert found["dinitial_state"].shape == inputs[5].shape


def test_second_derivative_through_the_chunks() -> None:
    inputs = example(1, 5, 1, 3, 2)
    second = []
    for form in ("torch", "reference"):
        o, _ = gated_delta_rule(*inputs[:5], initial_state=inputs[5], backend=form)
        (dq,) = torch.autograd.grad(o.square().sum(), inputs[:1], create_graph=True)
        second.append(torch.autograd.grad(dq.square().sum(), inputs))
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.ones(2, 6, 2, 4)}, r"k has shape \[2, 6, 2, 4\]"),
        ({"v": torch.ones(2, 5, 12)}, "v has shape"),
        ({"g": torch.ones(2, 5, 2, 4)}, r"g has shape \[2, 5, 2, 4\], but q \[2, 5, 2, 4\] wants \[B, T, H\]"),
        ({"beta": torch.ones(2, 5, 2, dtype=torch.int64)}, "does not take torch.int64"),
        ({"initial_state": torch.ones(2, 2, 4, 5)}, "initial_state has shape"),
        ({"cu_seqlens": torch.tensor([0, 5])}, "batch has 2"),
        ({"backend": "fast"}, "backend is 'fast'"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = dict(zip(NAMES, (x.detach() for x in example(2, 5, 2, 4, 6)[:5]), strict=False)) | change
    with pytest.raises(InputError, match=message):
        gated_delta_rule(**arguments)


@pytest.mark.parametrize(
    ("form", "bounds"), [("torch", None), ("torch", [0, 4, 9]), *((form, [0, 4, 9]) for form in FAST[1:])]
)
def test_opcheck(form: str, bounds: list[int] | None) -> None:
    device = operators.device_of(form)
    packed = None if bounds is None else torch.tensor(bounds, device=device)
    inputs = example(1, 9, 1, 4, 6, S=None if bounds is None else 2)
    inputs = [x.detach().to(device).requires_grad_() for x in inputs]
    for keep in (True, False):
        torch.library.opcheck(operator._forward, (*inputs, packed, 0.5, True, keep, form))
        outputs = operator._forward(*inputs, packed, 0.5, True, keep, form)
        plain = [x.detach() for x in (*outputs, *inputs)]
        torch.library.opcheck(operator._backward, (*plain, packed, 0.5, True, keep, form))


def test_compile_and_export() -> None:
    inputs = example()

    def run(q, k, v, g, beta, state):
        o, final = gated_delta_rule(q, k, v, g, beta, initial_state=state)
        return o.square().sum() + final.sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(form(*inputs), inputs) for form in (run, compiled)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)

    class Layer(torch.nn.Module):
        def forward(self, q, k, v, g, beta):
            return gated_delta_rule(q, k, v, g, beta)[0]

    time = torch.export.Dim("time", min=2, max=4096)
    example_inputs = tuple(x.detach() for x in inputs[:5])
    exported = torch.export.export(Layer(), example_inputs, dynamic_shapes=({1: time},) * 5)
    longer = [x.detach() for x in example(T=133)[:5]]
    torch.testing.assert_close(exported.module()(*longer), gated_delta_rule(*longer)[0])


@pytest.mark.parametrize("form", FAST)
def test_fake_tensors_of_a_gpu_that_is_not_there(form: str) -> None:
    with FakeTensorMode():
        q = torch.empty(2, 70, 2, 16, device="cuda", dtype=torch.bfloat16)
        g = torch.empty(2, 70, 2, device="cuda")
        o, final, *kept = operator._forward(q, q, q, g, g, None, None, 0.5, False, True, form)
        found = operator._backward(o, final, *kept, q, q, q, g, g, None, None, 0.5, False, True, form)
    assert (o.shape, o.dtype, o.device.type) == (q.shape, torch.bfloat16, "cuda")
    assert (final.shape, final.dtype) == ((2, 2, 16, 16), torch.float32)
    assert [x.shape for x in found] == [q.shape, q.shape, q.shape, g.shape, g.shape]


@pytest.mark.parametrize("bounds", [None, [0, 30, 30, 900]])
def test_a_backward_without_what_was_kept(bounds: list[int] | None) -> None:
    packed = None if bounds is None else torch.tensor(bounds)
    inputs = [x.detach() for x in example(1, 900, 2, 8, 12, S=None if bounds is None else 3)]
    found = []
    for keep in (True, False):
        o, final, *kept = operator._forward(*inputs, packed, 0.5, True, keep, "torch")
        found.append(operator._backward(o, final, *kept, *inputs, packed, 0.5, True, keep, "torch"))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_the_definition_serves_one_token_and_two() -> None:
    for T, name in ((2, "StackBackward0"), (3, "gated_gated_delta_rule_fwd")):
        assert name in gated_delta_rule(*example(T=T)[:5])[0].grad_fn.name()


def test_autocast_and_inference_mode_change_nothing() -> None:
    inputs = [x.detach() for x in example()[:5]]
    exact = gated_delta_rule(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gated_delta_rule(*inputs), exact, rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(gated_delta_rule(*inputs), exact, rtol=0, atol=0)
