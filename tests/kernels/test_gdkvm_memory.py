"""GDKVM's memory in Gram form against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.errors import InputError
from toolkit.kernels import gdkvm_memory as operator
from toolkit.kernels._common.numerics import relative_error
from toolkit.kernels.gdkvm_memory import gdkvm_memory, gdkvm_memory_step

NAMES = ("key", "value", "a_proj", "b_proj", "A_log", "dt_bias", "initial_state")
VERSIONS = [{"decay": decay, "alpha_expand": how} for decay in ("exp", "raw") for how in ("interleave", "tile")]
VERSIONS += [version | {"key_scale": "spectral"} for version in VERSIONS[::3]]


def example(B=2, T=4, N=2, K=8, V=12, P=10, heads=3, dtype=torch.float32) -> list[Tensor]:
    projections = torch.randn(2, heads, V) / V
    tensors = [torch.randn(B, T, K, P), torch.randn(B, T, N, V, P), *projections, *0.3 * torch.randn(2, heads)]
    return [x.to(dtype).requires_grad_() for x in (*tensors, torch.randn(B, N, K, V))]


def results(inputs: list[Tensor], form: str = "torch", **options) -> list[Tensor]:
    """Outputs and gradients for drawn gradients of the outputs."""
    *tensors, state = inputs
    outputs = gdkvm_memory(*tensors, initial_state=state, backend=form, **options)
    draws = torch.Generator().manual_seed(1)
    grads = [torch.randn(x.shape, generator=draws).to(x.dtype) for x in outputs]
    wanted = [x for x in inputs if x is not None]
    return [*outputs, *torch.autograd.grad(outputs, wanted, grads)]


def double(inputs: list[Tensor]) -> list[Tensor]:
    return [None if x is None else x.detach().double().requires_grad_() for x in inputs]


def check(inputs: list[Tensor], tolerance: float = 2e-6, **options) -> None:
    exact = results(double(inputs), "reference", **options)
    for got, want in zip(results(inputs, **options), exact, strict=True):
        assert got.shape == want.shape
        assert relative_error(got, want) <= tolerance


@pytest.mark.parametrize("options", VERSIONS)
@pytest.mark.parametrize("with_state", [True, False])
def test_versions(options: dict, with_state: bool) -> None:
    inputs = example()
    check(inputs if with_state else [*inputs[:-1], None], **options)


@pytest.mark.parametrize(
    "sizes", [{"T": 1}, {"N": 1}, {"B": 1, "K": 1}, {"P": 1}, {"heads": 1}, {"heads": 12}, {"K": 20, "P": 5}]
)
def test_sizes(sizes: dict) -> None:
    check(example(**sizes))


@pytest.mark.parametrize("options", VERSIONS)
def test_gradcheck_of_the_definition(options: dict) -> None:
    inputs = example(1, 3, 2, 3, 4, 2, heads=2, dtype=torch.float64)

    def run(*tensors):
        return gdkvm_memory(*tensors[:-1], initial_state=tensors[-1], **options)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("options", VERSIONS)
def test_frames_one_by_one(options: dict) -> None:
    inputs = example()
    *tensors, _ = inputs
    at_once = gdkvm_memory(*tensors, **options)
    state, readouts, states = None, [], []
    for t in range(4):
        readout, state = gdkvm_memory_step(tensors[0][:, t], tensors[1][:, t], state, *tensors[2:], **options)
        readouts.append(readout)
        states.append(state)
    one_by_one = torch.stack(readouts, 1), torch.stack(states, 1)
    torch.testing.assert_close(one_by_one, at_once, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(sum(x.square().sum() for x in run), tensors) for run in (one_by_one, at_once)]
    for got, want in zip(*gradients, strict=True):
        assert relative_error(got, want) <= 1e-5


@pytest.mark.parametrize("sizes", [{"P": 60}, {"P": 1}, {"K": 1, "P": 3}, {"K": 20, "P": 5, "T": 1}])
@pytest.mark.parametrize("options", VERSIONS[4:])
def test_bounded_writes(sizes: dict, options: dict) -> None:
    check(example(**sizes), **options)


def test_bounded_writes_of_keys_that_need_no_bound_are_the_published_ones() -> None:
    *tensors, state = (x.detach() for x in example(P=1, K=20))  # the one eigenvalue is the sum of squares, below 1
    found = [gdkvm_memory(*tensors, initial_state=state, key_scale=scale) for scale in ("spectral", "none")]
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["torch", "reference"])
def test_bounded_writes_keep_a_long_clip_bounded(form: str) -> None:
    """In large frames lambda_max is above P / K = 64, so the published rule erases far more than there is."""
    *tensors, _ = (x.detach() for x in example(B=1, T=60, N=1, P=512))
    tensors[4].fill_(-8)  # hardly any decay
    largest = {
        scale: gdkvm_memory(*tensors, key_scale=scale, backend=form)[1].abs().amax((0, 2, 3, 4))
        for scale in ("none", "spectral")
    }
    assert largest["none"].max() > 1e4 * largest["none"][0]
    assert largest["spectral"].max() < 4 * largest["spectral"][0]


def test_bounded_writes_on_gradients_of_equal_and_of_sharp_keys() -> None:
    """Keys without any contrast (K K^T has K - 1 zeros), and keys that pick one row each."""
    for key in (torch.zeros(1, 3, 6, 40), 80 * torch.eye(6)[:, torch.arange(40) % 6].expand(1, 3, 6, 40)):
        inputs = example(1, 3, 1, 6, 4, 40, heads=2)
        inputs[0] = key.clone().requires_grad_()
        exact = results(double(inputs), "reference", key_scale="spectral")
        for got, want in zip(results(inputs, key_scale="spectral"), exact, strict=True):
            assert got.isfinite().all()
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4 * max(1, want.abs().max().item()))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("key_scale", ["none", "spectral"])
def test_nothing_to_do(key_scale: str, backend: str) -> None:
    inputs = [x.detach().requires_grad_() for x in (*(y[:0] for y in example()[:2]), *example()[2:6])]
    readout, states = gdkvm_memory(*inputs, key_scale=key_scale, backend=backend)
    assert (readout.shape, states.shape) == ((0, 4, 2, 12, 10), (0, 4, 2, 8, 12))
    for got, x in zip(torch.autograd.grad(readout.sum() + states.sum(), inputs), inputs, strict=True):
        assert got.shape == x.shape
        assert not got.any()


def test_the_first_frame_is_written_without_gates() -> None:
    key, value, *_ = tensors = [x.detach() for x in example(T=1)[:-1]]
    readout, states = gdkvm_memory(*tensors)
    keys = key[:, 0].softmax(1)
    torch.testing.assert_close(states[:, 0], torch.einsum("bkp,bnvp->bnkv", keys, value[:, 0]))
    torch.testing.assert_close(readout[:, 0], torch.einsum("bkp,bnkv->bnvp", keys, states[:, 0]))


@pytest.mark.parametrize("wanted", NAMES)
def test_gradient_of_one_input(wanted: str) -> None:
    inputs = {name: x.detach() for name, x in zip(NAMES, example(), strict=True)}
    inputs[wanted].requires_grad_()
    runs = [gdkvm_memory(**inputs, backend=form)[0] for form in ("torch", "reference")]
    got, want = (torch.autograd.grad(readout.square().sum(), inputs[wanted])[0] for readout in runs)
    assert relative_error(got, want) <= 1e-5


def test_gradient_of_the_states_alone_and_second_derivative() -> None:
    inputs = example(1, 2, 1, 3, 4, 2, heads=2)
    found = []
    for form in ("torch", "reference"):
        _, states = gdkvm_memory(*inputs[:-1], initial_state=inputs[-1], backend=form)
        (dkey,) = torch.autograd.grad(states.square().sum(), inputs[:1], create_graph=True)
        found.append((dkey.detach(), *torch.autograd.grad(dkey.square().sum(), inputs)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_objects_do_not_mix() -> None:
    *tensors, state = (x.detach() for x in example())
    both = gdkvm_memory(*tensors, initial_state=state)
    alone = gdkvm_memory(tensors[0], tensors[1][:, :, 1:], *tensors[2:], initial_state=state[:, 1:])
    torch.testing.assert_close(alone, tuple(x[:, :, 1:] for x in both))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_the_state_in_float32(dtype: torch.dtype) -> None:
    inputs = [x.detach().to(dtype).requires_grad_() for x in example()]
    found = results(inputs)
    assert [x.dtype for x in found] == [dtype, torch.float32, *[dtype] * len(inputs)]
    for got, want in zip(found, results(double(inputs), "reference"), strict=True):
        assert relative_error(got, want) <= 1e-2
    assert relative_error(found[1], results(double(inputs), "reference")[1]) <= 1e-6


def test_strange_memory() -> None:
    inputs = example()
    strange = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in inputs]
    for got, want in zip(results(strange), results(inputs), strict=True):
        assert relative_error(got, want) <= 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay": "exponential"}, "decay is 'exponential'. One of: exp, raw"),
        ({"alpha_expand": "repeat"}, "alpha_expand is 'repeat'"),
        ({"key_scale": "spektral"}, "key_scale is 'spektral'. Did you mean 'spectral'"),
        ({"key": torch.ones(2, 4, 8)}, "key has shape"),
        ({"value": torch.ones(2, 4, 2, 12, 9)}, r"value has shape .* wants \[2, 4, N, V, 10\]"),
        ({"A_log": torch.ones(5)}, "heads a divisor of V = 12"),
        ({"a_proj": torch.ones(3, 11)}, r"a_proj has shape \[3, 11\], not \[3, 12\]"),
        ({"initial_state": torch.ones(2, 2, 8, 11)}, "initial_state has shape"),
        ({"backend": "triton"}, "asks gdkvm_memory for triton, but its gates need whole rows"),
        ({"key": torch.ones(2, 4, 8, 10, dtype=torch.int64)}, "does not take torch.int64"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = dict(zip(NAMES, (x.detach() for x in example()), strict=True)) | change
    with pytest.raises(InputError, match=message):
        gdkvm_memory(**arguments)


@pytest.mark.parametrize(("with_state", "key_scale"), [(True, "none"), (False, "spectral")])
def test_opcheck(with_state: bool, key_scale: str) -> None:
    inputs = example(1, 2, 1, 3, 4, 2, heads=2)
    inputs = inputs if with_state else [*inputs[:-1], None]
    torch.library.opcheck(operator._forward, (*inputs, "raw", "tile", key_scale, "torch"))
    readout, states = (x.detach() for x in operator._forward(*inputs, "raw", "tile", key_scale, "torch"))
    plain = [x if x is None else x.detach() for x in inputs]
    torch.library.opcheck(operator._backward, (readout, states, states, *plain, "raw", "tile", key_scale, "torch"))


def test_compile_autocast_and_fake_tensors() -> None:
    inputs = example()

    def run(*tensors):
        readout, states = gdkvm_memory(*tensors[:-1], initial_state=tensors[-1])
        return readout.square().sum() + states.sum()

    gradients = [torch.autograd.grad(run(*inputs), inputs)]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    gradients.append(torch.autograd.grad(compiled(*inputs), inputs))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    exact = gdkvm_memory(*inputs[:-1])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gdkvm_memory(*inputs[:-1]), exact, rtol=0, atol=0)
    with FakeTensorMode():
        fake = [torch.empty(x.shape, device="cuda") for x in inputs]
        readout, states = operator._forward(*fake, "exp", "tile", "none", "torch")
        found = operator._backward(readout, states, states, *fake, "exp", "tile", "none", "torch")
    assert [x.shape for x in (readout, states)] == [(2, 4, 2, 12, 10), (2, 4, 2, 8, 12)]
    assert [x.shape for x in found] == [x.shape for x in inputs]


def test_export_with_any_number_of_frames() -> None:
    class Memory(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            return gdkvm_memory(*tensors, key_scale="spectral")

    *tensors, _ = (x.detach() for x in example())
    frames = {1: torch.export.Dim("frames", min=1, max=1024)}
    program = torch.export.export(Memory(), tuple(tensors), dynamic_shapes={"tensors": (frames, frames, *[None] * 4)})
    *longer, _ = (x.detach() for x in example(T=7))
    torch.testing.assert_close(program.module()(*longer), gdkvm_memory(*longer, key_scale="spectral"))
