"""The fast Transformer layer against its definition and against PyTorch's own layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from toolkit.kernels.dropout import dropout_masks
from toolkit.kernels.encoder_layer import Masks, Weights, cpu, encoder_layer, reference


def example(
    batch: int = 3,
    tokens: int = 5,
    dim: int = 8,
    hidden: int = 12,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
) -> tuple[Tensor, Weights]:
    torch.manual_seed(0)
    shapes = [(dim,), (dim,), (3 * dim, dim), (3 * dim,), (dim, dim), (dim,), (dim,), (dim,)]
    shapes += [(hidden, dim), (hidden,), (dim, hidden), (dim,)]
    weights = Weights(*(torch.randn(shape, dtype=dtype) * 0.4 * scale for shape in shapes))
    x = torch.randn(batch, tokens, dim, dtype=dtype)
    return x.requires_grad_(), Weights(*(weight.requires_grad_() for weight in weights))


def draw_masks(x: Tensor, num_heads: int, hidden: int, p: float) -> Masks:
    B, N, d = x.shape
    shapes = (num_heads * B, N, N), (B * N, d), (B * N, hidden), (B * N, d)
    return Masks(*dropout_masks(shapes, p, x)) if p else Masks()


def gradients(form, x: Tensor, weights: Weights, *args) -> tuple[Tensor, ...]:
    y = form.encoder_layer(x, weights, *args)
    dy = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return y, *torch.autograd.grad(y, (x, *weights), dy)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(
    ("norm_first", "activation"), [(True, "relu"), (False, "gelu"), (True, "gelu"), (False, "relu")]
)
@pytest.mark.parametrize(
    ("batch", "tokens", "dim", "heads"), [(3, 5, 8, 2), (1, 1, 8, 8), (2, 70, 16, 1), (56, 13, 64, 4)]
)
def test_fast_equals_definition(batch, tokens, dim, heads, norm_first, activation, p) -> None:
    x, weights = example(batch, tokens, dim, scale=0.5)
    args = draw_masks(x, heads, 12, p), heads, norm_first, activation, 1e-5
    for fast, exact in zip(gradients(cpu, x, weights, *args), gradients(reference, x, weights, *args), strict=True):
        assert (fast - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize(("norm_first", "activation"), [(True, "relu"), (False, "gelu")])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradcheck(norm_first: bool, activation: str, p: float) -> None:
    x, weights = example(2, 3, 4, 5, torch.float64)
    masks = draw_masks(x, 2, 5, p)
    torch.autograd.gradcheck(
        lambda x, *w: cpu.encoder_layer(x, Weights(*w), masks, 2, norm_first, activation, 1e-5), (x, *weights)
    )


def test_large_scores_do_not_overflow() -> None:
    x, weights = example(scale=20.0)
    args = Masks(), 2, True, "relu", 1e-5
    fast, exact = gradients(cpu, x, weights, *args), gradients(reference, x, weights, *args)
    assert all(tensor.isfinite().all() for tensor in fast)
    torch.testing.assert_close(fast[0], exact[0], rtol=1e-4, atol=1e-4 * exact[0].abs().max().item())


def test_second_derivative() -> None:
    x, weights = example(1, 3, 4, 5)
    results = []
    for form in (cpu, reference):
        with sdpa_kernel(SDPBackend.MATH):  # for the definition; the others have no second derivative
            y = form.encoder_layer(x, weights, Masks(), 2, True, "gelu", 1e-5)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), (x, *weights), allow_unused=True))
    for fast, exact in zip(*results, strict=True):
        torch.testing.assert_close(fast, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("norm_first", "activation"), [(True, "relu"), (False, "gelu")])
def test_equals_the_library(norm_first: bool, activation: str) -> None:
    x, weights = example()
    layer = nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.0, batch_first=True, norm_first=norm_first, activation=activation
    )
    order = [
        "self_attn.in_proj_weight",
        "self_attn.in_proj_bias",
        "self_attn.out_proj.weight",
        "self_attn.out_proj.bias",
    ]
    order = ["norm1.weight", "norm1.bias", *order, "norm2.weight", "norm2.bias"]
    order += ["linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"]
    layer.load_state_dict(dict(zip(order, weights, strict=True)))
    options = {"num_heads": 2, "norm_first": norm_first, "activation": activation}
    torch.testing.assert_close(encoder_layer(x, weights, **options), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_frozen_parameters_and_inputs(dropout: float) -> None:
    x, weights = example()
    for tensor in (x, *weights[2:]):
        tensor.requires_grad_(False)
    encoder_layer(x, weights, num_heads=2, dropout=dropout).sum().backward()
    assert weights.norm1_weight.grad is not None
    assert x.grad is None
    assert weights.in_weight.grad is None


def test_autocast_takes_the_definition() -> None:
    x, weights = example()
    expected = encoder_layer(x, weights, num_heads=2)
    with torch.autocast("cpu", torch.bfloat16):
        y = encoder_layer(x, weights, num_heads=2)
    y.float().sum().backward()
    assert (y - expected).norm() < 0.05 * expected.norm()
    assert weights.in_weight.grad.dtype == torch.float32


def test_exports() -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return encoder_layer(x, weights, num_heads=2)

    x, weights = example()
    x, weights = x.detach(), Weights(*(weight.detach() for weight in weights))
    exported = torch.export.export(Layer(), (x,)).module()
    torch.testing.assert_close(exported(x), encoder_layer(x, weights, num_heads=2), rtol=1e-5, atol=1e-5)
