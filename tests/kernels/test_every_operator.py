"""What holds for all public operators: empty batches, views, types, devices, autocast, a machine without Triton."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import operators
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit import registry
from toolkit.errors import InputError
from toolkit.kernels._common.numerics import relative_error
from toolkit.kernels.bidirectional_gla import bidirectional_gla
from toolkit.kernels.gated_delta_rule import gated_delta_rule
from toolkit.kernels.gated_fusion import gated_fusion, geglu_erf, geglu_tanh, glu, swiglu
from toolkit.kernels.gated_sdpa import gated_sdpa
from toolkit.kernels.gdkvm_memory import gdkvm_memory
from toolkit.kernels.gla import gla
from toolkit.kernels.gnconv import Weights, gnconv
from toolkit.kernels.haar import haar, inverse_haar
from toolkit.kernels.soft_dtw import soft_dtw, soft_dtw_from_costs
from toolkit.kernels.spatial_gate import spatial_gate

ROOT = Path(__file__).parents[2]
T, H, K, V = 7, 2, 3, 4


SLOW_IN_THE_INTERPRETER = (
    "gla",
    "bidirectional_gla",
    "gated_delta_rule",
    "soft_dtw",
    "soft_dtw_from_costs",
    "spatial_gate",
)


def mix(*tensors: Tensor, backend: str) -> Tensor:
    return spatial_gate(*tensors, axis=1, backend=backend)


def convolve(x: Tensor, *weights: Tensor, backend: str) -> Tensor:
    *outer, pws, pws_bias = weights
    return gnconv(x, Weights(*outer[:4], (pws,), (pws_bias,), *outer[4:]), scale=0.5, backend=backend)


# By name: the function, shapes per sample of the inputs that have a batch axis, shapes of the others.
EVERY: dict[str, tuple[Callable, list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "gla": (gla, [(T, H, K), (T, H, K), (T, H, V), (T, H, K)], []),
    "bidirectional_gla": (bidirectional_gla, [(T, H, K), (T, H, K), (T, H, V), (T, H, K), (T, H, K)], []),
    "gated_delta_rule": (gated_delta_rule, [(T, H, K), (T, H, K), (T, H, V), (T, H), (T, H)], []),
    "gdkvm_memory": (gdkvm_memory, [(3, K, 5), (3, 1, V, 5)], [(2, V), (2, V), (2,), (2,)]),
    "gated_sdpa": (gated_sdpa, [(T, H, K), (T, 1, K), (T, 1, V), (T, H, 1)], []),
    **{function.__name__: (function, [(6,), (6,)], []) for function in (glu, swiglu, geglu_tanh, geglu_erf)},
    "gated_fusion": (gated_fusion, [(6,), (6,), (6,)], []),
    "gnconv": (convolve, [(4, 5, 6)], [(8, 4, 1, 1), (8,), (6, 1, 3, 3), (6,), (4, 4, 1, 1), (4,), (4, 2, 1, 1), (4,)]),
    "spatial_gate": (mix, [(3, 5, 8)], [(3, 3), (3,), (4,), (4,)]),
    "haar": (haar, [(2, 7)], []),
    "inverse_haar": (inverse_haar, [(2, 4), (2, 4)], []),
    "soft_dtw": (soft_dtw, [(5, 2), (6, 2)], []),
    "soft_dtw_from_costs": (soft_dtw_from_costs, [(5, 6)], []),
}
FOLDERS = {"inverse_haar": "haar", "soft_dtw_from_costs": "soft_dtw"} | dict.fromkeys(
    ("glu", "swiglu", "geglu_tanh", "geglu_erf"), "gated_fusion"
)
GATES = {"gla": [3], "bidirectional_gla": [3, 4], "gated_delta_rule": [3]}  # log decays: at most 0


def forms(name: str) -> list[str]:
    folder = ROOT / "kernels" / FOLDERS.get(name, name)
    return [form for form in operators.FORMS if form != "triton" or (folder / "triton.py").exists()]


CASES = [(name, form) for name in EVERY for form in forms(name)]


def example(name: str, B: int = 2, form: str = "torch", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    _, batched, others = EVERY[name]
    inputs = [torch.randn(B, *shape) for shape in batched] + [torch.randn(shape) for shape in others]
    for position in GATES.get(name, []):
        inputs[position] = -inputs[position].abs()
    return [x.to(operators.device_of(form), dtype).requires_grad_() for x in inputs]


def run(name: str, inputs: Sequence[Tensor], form: str = "auto") -> tuple[Tensor, ...]:
    outputs = EVERY[name][0](*inputs, backend=form)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def results(name: str, inputs: Sequence[Tensor], form: str = "auto") -> list[Tensor]:
    """Outputs, and the gradients of all inputs for the sum of the outputs' squares."""
    outputs = run(name, inputs, form)
    loss = sum(x.square().sum() for x in outputs)
    return [*outputs, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def test_no_operator_is_missing() -> None:
    parts_of_models = {"dropout", "encoder_layer", "linear_gate"}
    assert {FOLDERS.get(name, name) for name in EVERY} == set(registry.kernels.names()) - parts_of_models


@pytest.mark.parametrize(("name", "form"), CASES)
def test_an_empty_batch(name: str, form: str) -> None:
    inputs, full = example(name, 0, form), run(name, example(name), "torch")
    found = results(name, inputs, form)
    for got, like in zip(found[: len(full)], full, strict=True):
        assert (got.shape, got.dtype) == ((0, *like.shape[1:]), like.dtype)
    for got, x in zip(found[len(full) :], inputs, strict=True):
        assert got.shape == x.shape
        assert not got.any()


@pytest.mark.parametrize(
    ("name", "form"), [case for case in CASES if case[1] != "triton" or case[0] not in SLOW_IN_THE_INTERPRETER]
)
def test_expanded_and_strided_inputs(name: str, form: str) -> None:
    batched = len(EVERY[name][1])
    one = [x.detach() for x in example(name, 1, form)]
    expanded = [x.expand(3, *x.shape[1:]) if i < batched else x for i, x in enumerate(one)]
    strided = [torch.stack([x, x], -1)[..., 0] for x in expanded]
    exact = results(name, [x.contiguous().requires_grad_() for x in expanded], form)
    for views in (expanded, strided):
        for got, want in zip(results(name, [x.requires_grad_() for x in views], form), exact, strict=True):
            assert relative_error(got, want) <= 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_half_types_under_autocast_and_alone(name: str) -> None:
    """States and values of soft-DTW are float32; the rest comes in the inputs' type, within one percent."""
    inputs = [x.detach().bfloat16().requires_grad_() for x in example(name)]
    exact = results(name, [x.detach().double().requires_grad_() for x in inputs])
    alone = results(name, inputs, "torch")
    with torch.autocast("cpu", torch.bfloat16):
        inside = results(name, inputs, "torch")
    for found in (alone, inside):
        for got, want in zip(found, exact, strict=True):
            assert got.dtype in (torch.bfloat16, torch.float32)
            assert relative_error(got, want) <= 2e-2


@pytest.mark.parametrize("name", EVERY)
def test_each_gradient_alone(name: str) -> None:
    inputs = [x.detach() for x in example(name)]
    every = results(name, [x.clone().requires_grad_() for x in inputs], "torch")[-len(inputs) :]
    for position, want in enumerate(every):
        alone = [x.clone().requires_grad_(i == position) for i, x in enumerate(inputs)]
        loss = sum(x.square().sum() for x in run(name, alone, "torch"))
        (got,) = torch.autograd.grad(loss, alone[position])
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_inference_mode(name: str) -> None:
    inputs = [x.detach() for x in example(name)]
    with torch.inference_mode():
        inside = run(name, inputs, "torch")
    torch.testing.assert_close(inside, run(name, inputs, "torch"), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*runs in plain PyTorch")
@pytest.mark.parametrize("name", EVERY)
def test_fake_tensors_of_a_gpu_that_is_not_there(name: str) -> None:
    inputs = [x.detach() for x in example(name)]
    expected = run(name, inputs)
    with FakeTensorMode():
        found = run(name, [torch.empty(x.shape, device="cuda") for x in inputs])
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in expected]
    assert {x.device.type for x in found} == {"cuda"}


@pytest.mark.parametrize("name", EVERY)
def test_types_and_devices_that_nobody_serves(name: str) -> None:
    inputs = [x.detach() for x in example(name)]
    with pytest.raises(InputError, match=r"int64"):
        run(name, [x.long() for x in inputs])
    if len(inputs) > 1:
        with pytest.raises(InputError, match="on cpu.* on meta|on meta.* on cpu"):
            run(name, [inputs[0], *(x.to("meta") for x in inputs[1:])])


def test_every_operator_without_triton() -> None:
    code = f"""
import sys
sys.modules["triton"] = None
sys.path[:0] = [{str(ROOT / "tests" / "golden")!r}, {str(ROOT / "tests" / "kernels")!r}]
import test_every_operator as every
for name in every.EVERY:
    found = every.results(name, every.example(name))
    assert all(x.isfinite().all() for x in found), name
loaded = [name for name in sys.modules if name.startswith("toolkit.kernels.") and name.endswith(".triton")]
assert not loaded, loaded
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr
