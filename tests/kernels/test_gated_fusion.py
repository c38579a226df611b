from __future__ import annotations

import operators
import pytest
import torch
from operators import gradients
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.errors import InputError
from toolkit.kernels import gated_fusion as operator
from toolkit.kernels._common.numerics import relative_error
from toolkit.kernels.gated_fusion import cpu, reference

KINDS = list(reference.GATES)
FAST = operators.FORMS[1:]


def inputs_of(kind: str, *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[torch.Tensor]:
    number = 3 if kind == "gated_fusion" else 2
    return [torch.randn(shape).to(device, dtype).requires_grad_() for _ in range(number)]


def function_of(kind: str, form: str):
    return lambda *tensors: getattr(operator, kind)(*tensors, backend=form)


def definition_of(kind: str):
    return lambda x, a, b=None: reference.gated(x, a, b, kind)


def exact(kind: str, inputs: list[torch.Tensor], dy: torch.Tensor) -> list[torch.Tensor]:
    leaves = [tensor.detach().cpu().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
    return gradients(definition_of(kind), leaves, dy.double())


def check(kind: str, form: str, inputs: list[torch.Tensor], tolerance: float = 1e-6) -> None:
    dy = torch.randn(inputs[0].shape)
    found = gradients(function_of(kind, form), inputs, dy)
    for got, want in zip(found, exact(kind, inputs, dy), strict=True):
        assert got.dtype == inputs[0].dtype
        assert got.shape == want.shape
        assert relative_error(got.cpu(), want) <= tolerance


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 7), (1025,)])
def test_matches_the_definition(kind, form, shape):
    check(kind, form, inputs_of(kind, *shape, device=operators.device_of(form)))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_on_the_cpu(kind):
    check(kind, "torch", inputs_of(kind, 2 * cpu.BLOCK + 17))


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(kind, form, dtype):
    check(kind, form, inputs_of(kind, 40, 33, dtype=dtype, device=operators.device_of(form)), tolerance=1e-2)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("kind", KINDS)
def test_strange_memory(kind, form):
    device = operators.device_of(form)
    wide = torch.randn(6, 22, device=device, requires_grad=True)
    others = [torch.randn(11, 6, device=device).t()] if kind == "gated_fusion" else []
    dy = torch.randn(1, 11).expand(6, 11)
    found = gradients(lambda wide: function_of(kind, form)(*wide.chunk(2, dim=-1), *others), [wide], dy)
    want = gradients(
        lambda wide: definition_of(kind)(*wide.chunk(2, dim=-1), *(o.cpu().double() for o in others)),
        [wide.detach().cpu().double().requires_grad_()],
        dy,
    )
    assert all(relative_error(got.cpu(), right) < 1e-6 for got, right in zip(found, want, strict=True))


@pytest.mark.parametrize("form", operators.FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_empty(kind, form):
    inputs = inputs_of(kind, 0, 4, device=operators.device_of(form))
    assert all(result.shape == (0, 4) for result in gradients(function_of(kind, form), inputs, torch.randn(0, 4)))


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("kind", KINDS)
def test_huge_values_stay_finite(kind, form):
    inputs = inputs_of(kind, 6, device=operators.device_of(form))
    with torch.no_grad():
        inputs[0].copy_(torch.tensor([-1e37, 1e37, -1e20, 1e20, -90.0, 90.0]))
    for result in gradients(function_of(kind, form), inputs, torch.ones(6)):
        assert result.isfinite().all()


@pytest.mark.parametrize("wanted", range(3))
def test_gradient_of_one_input_alone(wanted):
    inputs = [torch.randn(9).requires_grad_(position == wanted) for position in range(3)]
    check("gated_fusion", "torch", inputs)


@pytest.mark.parametrize("form", ["reference", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, form):
    inputs = inputs_of(kind, 2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(function_of(kind, form), inputs)
    assert torch.autograd.gradgradcheck(function_of(kind, form), inputs)


def test_second_derivative_of_a_tensor_that_is_passed_twice():
    x = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: operator.gated_fusion(x, x, x * x, backend="torch"), [x])


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("kind", ["gated_fusion", "swiglu"])
def test_opcheck(kind, form):
    inputs = inputs_of(kind, 3, 5, device=operators.device_of(form))
    x, a, b = inputs if kind == "gated_fusion" else (*inputs, None)
    torch.library.opcheck(operator._forward, (x, a, b, kind, form))
    plain = [tensor if tensor is None else tensor.detach() for tensor in (x, x, a, b)]
    torch.library.opcheck(operator._backward, (*plain, kind, form))


@pytest.mark.parametrize("form", ["auto", "torch"])
def test_compile(form):
    inputs = inputs_of("gated_fusion", 4, 6)
    compiled = torch.compile(function_of("gated_fusion", form), fullgraph=True, backend="aot_eager")
    dy = torch.randn(4, 6)
    for got, want in zip(gradients(compiled, inputs, dy), exact("gated_fusion", inputs, dy), strict=True):
        assert relative_error(got, want) < 1e-6


@pytest.mark.parametrize("form", ["auto", "torch"])
def test_export_with_a_free_size(form):
    class Gate(torch.nn.Module):
        def forward(self, x, a, b):
            return operator.gated_fusion(x, a, b, backend=form)

    rows = torch.export.Dim("rows", min=2, max=64)
    example = tuple(torch.randn(4, 3) for _ in range(3))
    program = torch.export.export(Gate(), example, dynamic_shapes={name: {0: rows} for name in "xab"})
    others = [torch.randn(9, 3) for _ in range(3)]
    torch.testing.assert_close(program.module()(*others), Gate()(*others))


def test_fake_tensors_of_a_gpu_that_is_not_there():
    with FakeTensorMode():
        x = torch.empty(4, 6, device="cuda")
        y = operator._forward(x, x, x, "gated_fusion", "triton")
        grads = operator._backward(y, x, x, x, "gated_fusion", "triton")
    assert [(t.device.type, t.shape) for t in (y, *grads)] == [("cuda", (4, 6))] * 4


def test_autocast_and_mixed_types():
    x, a = torch.randn(5, 4), torch.randn(5, 4, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, da = gradients(lambda a: operator.swiglu(x, a), [a], torch.ones(5, 4))
    assert (y.dtype, da.dtype) == (torch.float32, torch.bfloat16)
    assert relative_error(y, torch.nn.functional.silu(x) * a) < 1e-6


def test_inference_mode():
    with torch.inference_mode():
        x, a, b = torch.randn(3, 8).unbind()
        torch.testing.assert_close(operator.gated_fusion(x, a, b), torch.lerp(b, a, x.sigmoid()))


def test_the_choice_on_a_cpu_depends_on_the_size():
    small, large = torch.randn(9), torch.randn(1).expand(2**23)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert operator.swiglu(small.requires_grad_(), small).grad_fn.name() == "MulBackward0"
        large = large.detach().requires_grad_()
        assert "gated_fusion_fwd" in operator.swiglu(large, large).grad_fn.name()


def test_shapes_that_differ():
    with pytest.raises(InputError, match=r"a is \[3\], x is \[2, 3\]"):
        operator.glu(torch.randn(2, 3), torch.randn(3))
