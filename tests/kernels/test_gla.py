"""Gated linear attention in chunks against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels import gla as operator
from toolkit.kernels._common import chunks, gated_scan
from toolkit.kernels.gla import gla, gla_step, reference

NAMES = ("q", "k", "v", "g", "initial_state")


@pytest.fixture(autouse=True)
def _one_thread():
    """Small products gain nothing from a second thread, and lose much where it is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def example(B=2, T=70, H=2, K=8, V=12, decay=1.0, S=None, dtype=torch.float32) -> list[Tensor]:
    q, k, g = torch.randn(B, T, H, K), torch.randn(B, T, H, K), -decay * torch.rand(B, T, H, K)
    tensors = q, k, torch.randn(B, T, H, V), g, torch.randn(B if S is None else S, H, K, V)
    return [x.to(dtype).requires_grad_() for x in tensors]


def results(inputs: list[Tensor], bounds: list[int] | None = None, **options) -> dict[str, Tensor]:
    """Outputs and gradients for drawn gradients of the outputs."""
    q, k, v, g, state = inputs
    packed = None if bounds is None else torch.tensor(bounds)
    o, final = gla(q, k, v, g, initial_state=state, cu_seqlens=packed, **options)
    draws = torch.Generator().manual_seed(1)
    do, dfinal = torch.randn(o.shape, generator=draws), torch.randn(final.shape, generator=draws)
    gradients = torch.autograd.grad((o * do).sum() + (final * dfinal).sum(), inputs)
    names = [f"d{name}" for name in NAMES]
    return {"o": o.detach(), "final_state": final.detach(), **dict(zip(names, gradients, strict=True))}


def double(inputs: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in inputs]


def errors(got: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    assert all(x.isfinite().all() for x in got.values())
    return {
        n: float((got[n].double() - x.double()).norm() / x.double().norm().clamp_min(1e-30)) for n, x in exact.items()
    }


def check(inputs: list[Tensor], bounds: list[int] | None = None, tolerance: float = 2e-6, **options) -> None:
    exact = results(double(inputs), bounds, scale=options.get("scale"))
    measured = errors(results(inputs, bounds, **options), exact)
    assert max(measured.values()) <= tolerance, measured


@pytest.mark.parametrize("T", [1, 2, 16, 31, 32, 33, 64, 65, 530])
def test_lengths(T: int) -> None:
    check(example(T=T))


@pytest.mark.parametrize(("K", "V"), [(1, 1), (1, 5), (8, 1), (8, 8), (40, 16), (100, 24)])
def test_widths(K: int, V: int) -> None:
    check(example(K=K, V=V, T=41, B=1, H=1))


@pytest.mark.parametrize("total", [1, 40, 80, 119, 121, 160, 175, 400, 4000])
@pytest.mark.parametrize("T", [64, 70])
def test_uniform_decays(total: float, T: int) -> None:
    inputs = example(T=T, B=1)
    with torch.no_grad():
        inputs[3].fill_(-total / chunks.CHUNK)
    check(inputs, tolerance=5e-6)


@pytest.mark.parametrize("decay", [40.0, 400.0, 1e30])
def test_strong_decays(decay: float) -> None:
    check(example(decay=decay))


def test_decays_mixed_in_one_batch() -> None:
    inputs = example(B=7, T=96, H=1)
    with torch.no_grad():
        for row, total in enumerate((1, 40, 80, 120, 160, 175, 400)):
            inputs[3][row].mul_(2 * total / chunks.CHUNK)
    check(inputs, tolerance=5e-6)


@pytest.mark.parametrize("chunk", [8, 16, 64, 128])
@pytest.mark.parametrize("form", ["auto", "dyadic"])
def test_chunk_length_and_form_do_not_matter(chunk: int, form: str, monkeypatch) -> None:
    inputs = example(T=150)
    exact = results(inputs)
    monkeypatch.setattr(chunks, "chunk_length", lambda T, S: chunk)
    chosen = gated_scan.decays
    monkeypatch.setattr(gated_scan, "decays", lambda *args: chosen(*args[:-1], form))
    measured = errors(results(inputs), exact)
    assert max(measured.values()) <= 2e-6, measured


def test_tiles_of_both_forms_hand_the_state_over() -> None:
    inputs = example(T=2 * chunks.TILE + 9, B=1, H=1)
    with torch.no_grad():
        inputs[3][:, chunks.TILE : 2 * chunks.TILE] *= 40
    check(inputs)


@pytest.mark.parametrize("bounds", [[0, 5, 6, 40, 61], [0, 0, 61, 61], [0, 61], [0, 1, 2, 3, 61], [0, 33, 61]])
@pytest.mark.parametrize("decay", [1.0, 40.0])
def test_packed_equals_separate(bounds: list[int], decay: float) -> None:
    check(example(B=1, T=61, S=len(bounds) - 1, decay=decay), bounds)


def test_packed_over_several_tiles() -> None:
    bounds = [0, 3, 540, 541, 580]
    check(example(B=1, T=580, S=4), bounds)


def test_batch_walked_in_groups(monkeypatch) -> None:
    monkeypatch.setattr(chunks, "GROUP", 40 * 2 * 12 * 2)
    check(example(B=5, T=40))


@pytest.mark.parametrize("split", [1, 31, 64])
def test_split_with_the_state_handed_over(split: int) -> None:
    inputs = example()
    *sequence, state = inputs
    left, middle = gla(*(x[:, :split] for x in sequence), initial_state=state)
    right, final = gla(*(x[:, split:] for x in sequence), initial_state=middle)
    o, whole = gla(*sequence, initial_state=state)
    halves, at_once = (torch.cat([left, right], 1), final), (o, whole)
    torch.testing.assert_close(halves, at_once, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(sum(x.square().sum() for x in run), inputs) for run in (halves, at_once)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_without_decay_it_is_causal_linear_attention() -> None:
    q, k, v, g, _ = (x.detach() for x in example())
    scores = torch.einsum("bihk,bjhk->bhij", q, k).tril()
    exact = torch.einsum("bhij,bjhv->bihv", scores, v) * 8**-0.5
    torch.testing.assert_close(gla(q, k, v, torch.zeros_like(g))[0], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", [0, 1, 37, 64, 69])
@pytest.mark.parametrize("erase", [-torch.inf, -1e30, -200.0])
def test_erasing_makes_the_past_irrelevant(cut: int, erase: float) -> None:
    inputs = example()
    with torch.no_grad():
        inputs[3][:, cut] = erase
    o, final = gla(*inputs[:4], initial_state=inputs[4])
    fresh, _ = gla(*(x[:, cut:] for x in inputs[:4]))
    torch.testing.assert_close(o[:, cut:], fresh, rtol=1e-5, atol=1e-5)
    dq, dk, dv, dg, dstate = torch.autograd.grad(o[:, cut:].sum() + final.sum(), inputs)
    assert all(x.isfinite().all() for x in (dq, dk, dv, dg, dstate))
    assert not any(x[:, :cut].any() for x in (dq, dk, dv, dg))
    assert not dg[:, cut].any()
    assert not dstate.any()


def test_small_gradients_of_decays_keep_their_digits() -> None:
    """Every gate nearly shut: dg is 1e-17 of the others, and still exact."""
    inputs = example(T=64)
    with torch.no_grad():
        inputs[3].fill_(-40)
    check(inputs)


def test_padding_with_zero_keys_and_gates_leaves_the_state() -> None:
    q, k, v, g, state = (x.detach() for x in example(T=50))
    with torch.no_grad():
        k[:, 30:], g[:, 30:] = 0, 0
    _, padded = gla(q, k, v, g, initial_state=state)
    _, cut = gla(q[:, :30], k[:, :30], v[:, :30], g[:, :30], initial_state=state)
    torch.testing.assert_close(padded, cut, rtol=1e-6, atol=1e-6)


def test_layouts() -> None:
    inputs = example(B=3, T=40)
    exact = results(inputs)
    for layout in (
        lambda x: x.detach().transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.stack([x.detach(), x.detach()], -1)[..., 0],
    ):
        measured = errors(results([layout(x).requires_grad_() for x in inputs]), exact)
        assert max(measured.values()) <= 1e-6, measured
    q, k, v, g, _ = (x.detach() for x in inputs)
    one_gate = g[:1, :, :1, :1].expand_as(g)
    torch.testing.assert_close(gla(q, k, v, one_gate), gla(q, k, v, one_gate.contiguous()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_low_precision(dtype: torch.dtype, tolerance: float) -> None:
    inputs = [x.detach().to(dtype).requires_grad_() for x in example(T=100)]
    got = results(inputs)
    assert got["final_state"].dtype == torch.float32
    assert all(got[n].dtype == dtype for n in got if n != "final_state")
    measured = errors(got, results(double(inputs)))
    assert max(measured.values()) <= tolerance, measured
    assert measured["final_state"] <= 1e-6


@pytest.mark.parametrize("wanted", NAMES)
def test_gradient_of_one_input(wanted: str) -> None:
    inputs = {name: x.detach() for name, x in zip(NAMES, example(), strict=True)}
    inputs[wanted].requires_grad_()
    runs = [
        gla(*list(inputs.values())[:4], initial_state=inputs["initial_state"], backend=b)[0]
        for b in ("torch", "reference")
    ]
    torch.testing.assert_close(
        *(torch.autograd.grad(o.square().sum(), inputs[wanted])[0] for o in runs), rtol=1e-4, atol=1e-4
    )


def test_gradient_of_the_final_state_alone() -> None:
    inputs = example()
    runs = [gla(*inputs[:4], initial_state=inputs[4], backend=b)[1] for b in ("torch", "reference")]
    gradients = [torch.autograd.grad(s.square().sum(), inputs, allow_unused=True) for s in runs]
    assert gradients[0][0] is None or not gradients[0][0].any()
    torch.testing.assert_close(gradients[0][1:], gradients[1][1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_to_do(shape: tuple[int, int]) -> None:
    inputs = example(*shape)
    assert results(inputs)["dinitial_state"].shape == inputs[4].shape
    for backend in ("torch", "reference"):
        o, final = gla(*inputs[:4], initial_state=inputs[4], backend=backend)
        assert o.shape == (*shape, 2, 12)
        torch.testing.assert_close(final, inputs[4])


def test_steps_equal_the_sequence() -> None:
    q, k, v, g, state = (x.detach() for x in example(T=9))
    o, final = gla(q, k, v, g, initial_state=state)
    running = state.clone()
    steps = [gla_step(q[:, t], k[:, t], v[:, t], g[:, t], running) for t in range(9)]
    torch.testing.assert_close((torch.stack(steps, 1), running), (o, final), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [None, [0, 3, 3, 7]])
def test_gradcheck_of_the_definition(packed: list[int] | None) -> None:
    bounds = None if packed is None else torch.tensor(packed)
    inputs = example(1, 7, 1, 3, 2, S=None if packed is None else 3, dtype=torch.float64)

    def run(q, k, v, g, state):
        return reference.gla(q, k, v, g, state, bounds, 0.5)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_second_derivative_goes_through_the_definition() -> None:
    inputs = example(1, 5, 1, 3, 2)
    found = []
    for backend in ("torch", "reference"):
        o, final = gla(*inputs[:4], initial_state=inputs[4], backend=backend)
        first = torch.autograd.grad(o.square().sum() + final.square().sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(x.square().sum() for x in first), inputs))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.ones(2, 6, 2, 4)}, r"k has shape \[2, 6, 2, 4\]"),
        ({"v": torch.ones(2, 5, 12)}, "v has shape"),
        ({"g": torch.ones(2, 5, 2, 4, dtype=torch.int64)}, "g is torch.int64"),
        ({"initial_state": torch.ones(2, 2, 4, 5)}, "initial_state has shape"),
        ({"cu_seqlens": torch.tensor([0, 5])}, "batch has 2"),
        ({"backend": "fast"}, "backend is 'fast'"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = dict(zip("qkvg", (x.detach() for x in example(2, 5, 2, 4, 6)), strict=False)) | change
    with pytest.raises(InputError, match=message):
        gla(**arguments)


@pytest.mark.parametrize("bounds", [[1, 5], [0, 4], [0, 6, 5], [0.0, 5.0], [0]])
def test_bad_bounds(bounds: list) -> None:
    q, k, v, g, _ = (x.detach() for x in example(1, 5, 2, 4, 6))
    with pytest.raises(InputError, match="cu_seqlens"):
        gla(q, k, v, g, cu_seqlens=torch.tensor(bounds))


def test_operator_check() -> None:
    for T, bounds in ((5, None), (9, [0, 4, 9])):
        packed = None if bounds is None else torch.tensor(bounds)
        *sequence, state = example(1, T, 2, 4, 6, S=None if bounds is None else 2)
        torch.library.opcheck(operator._forward, (*sequence, state, packed, 0.5, "torch"))


def test_compile_and_export() -> None:
    inputs = example()

    def run(q, k, v, g, state):
        o, final = gla(q, k, v, g, initial_state=state)
        return o.square().sum() + final.sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(form(*inputs), inputs) for form in (run, compiled)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)

    class Layer(torch.nn.Module):
        def forward(self, q, k, v, g):
            return gla(q, k, v, g)[0]

    q, k, v, g, _ = (x.detach() for x in inputs)
    time = torch.export.Dim("time", min=2, max=4096)
    exported = torch.export.export(Layer(), (q, k, v, g), dynamic_shapes=({1: time},) * 4)
    longer = [x.detach() for x in example(T=133)[:4]]
    torch.testing.assert_close(exported.module()(*longer), gla(*longer)[0])


def test_autocast_and_inference_mode_change_nothing() -> None:
    q, k, v, g, _ = (x.detach() for x in example())
    exact = gla(q, k, v, g)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gla(q, k, v, g), exact, rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(gla(q, k, v, g), exact, rtol=0, atol=0)
