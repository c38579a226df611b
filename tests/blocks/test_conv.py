"""Gated recursive convolutions and global-local filters on their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolkit.blocks import conv
from toolkit.blocks.conv import GlobalLocalFilter, GnConv, fourier_filter, resize_spectrum
from toolkit.errors import InputError

SIZES = [  # channels in and inside, order, kernel, half spectrum
    (12, 16, 1, 7, None),
    (12, 64, 5, 7, None),
    (12, 100, 5, 3, None),  # 2^(n-1) does not divide 100
    (10, 10, 2, 5, None),
    (16, 64, 5, 7, (5, 3)),
    (16, 30, 3, 7, (9, 5)),
    (8, 11, 2, 7, (9, 5)),  # 5 + 11 channels are filtered
]


def plain(module: GnConv, x: torch.Tensor) -> torch.Tensor:
    """The definition, by the module's own layers."""
    a, r = module.proj_in(x).split(module.parts, dim=1)
    first, *factors = (module.scale * module.dwconv(r)).split(module.widths, dim=1)
    p = a * first
    for pointwise, factor in zip(module.pws, factors, strict=True):
        p = pointwise(p) * factor
    return module.proj_out(p)


@pytest.mark.parametrize(("in_dim", "dim", "order", "kernel_size", "filter_size"), SIZES)
@pytest.mark.parametrize("grad", [False, True])
def test_any_width_and_order_is_the_definition(in_dim, dim, order, kernel_size, filter_size, grad):
    module = GnConv(in_dim, dim, order, kernel_size=kernel_size, filter_size=filter_size, scale=0.7, out_dim=9)
    x = torch.randn(2, in_dim, 9, 8)
    with torch.set_grad_enabled(grad):
        y = module(x)
    assert y.shape == (2, 9, 9, 8)
    assert module.widths == [dim // 2 ** (order - 1 - i) for i in range(order)]
    torch.testing.assert_close(y, plain(module, x), rtol=1e-5, atol=1e-6)


def test_inference_goes_tile_by_tile(monkeypatch):
    monkeypatch.setattr(conv, "TILE", 7)
    module, x = GnConv(16, order=3, scale=0.5), torch.randn(2, 16, 9, 11)
    with torch.no_grad():
        torch.testing.assert_close(module(x), plain(module, x))


@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
@pytest.mark.parametrize("small", [0, conv.SMALL])
@pytest.mark.parametrize("onednn", [True, False])
def test_products_by_any_library_are_linear_layers(gelu, small, onednn, monkeypatch):
    monkeypatch.setattr(conv, "SMALL", small)
    if not onednn:
        monkeypatch.setattr(conv, "_onednn_linear", None)
    layer, x = nn.Conv2d(16, 24, 1), torch.randn(3, 5, 16)
    with torch.no_grad():
        y = conv.dense(x, *conv.parameters(layer), gelu=gelu)
        expected = layer(x.permute(0, 2, 1)[..., None])[..., 0].permute(0, 2, 1)
        if gelu is not None:
            expected = nn.functional.gelu(expected, approximate=gelu)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_inference_leaves_its_input_alone():
    module, x = GnConv(16, order=3), torch.randn(1, 16, 6, 6).to(memory_format=torch.channels_last)
    before = x.clone()
    with torch.no_grad():
        module(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("filter_size", [None, (4, 3)])
def test_an_empty_batch_stays_empty(filter_size):
    module = GnConv(8, order=2, filter_size=filter_size)
    with torch.no_grad():
        assert module(torch.zeros(0, 8, 4, 4)).shape == (0, 8, 4, 4)


@pytest.mark.parametrize(("dim", "filter_size"), [(8, None), (10, None), (8, (3, 2))])
def test_gradients_in_double_precision(dim, filter_size):
    module = GnConv(4, dim, order=3, kernel_size=3, filter_size=filter_size, scale=0.5).double()
    x = torch.randn(2, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    parameters = dict(module.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), x)

    values = [value.detach().requires_grad_() for value in parameters.values()]
    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)


def test_gradients_in_float32_are_those_of_the_definition():
    module, x = GnConv(16, order=4, scale=0.5), torch.randn(2, 16, 9, 7)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    found = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    expected = torch.autograd.grad(plain(module, x).square().sum(), list(module.parameters()))
    for name, got, wanted in zip(dict(module.named_parameters()), found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_the_fourier_filter_is_a_circular_convolution():
    x, weight = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.randn(3, 5, 4, 2, dtype=torch.float64)
    kernel = torch.fft.irfft2(torch.view_as_complex(weight), s=(5, 6))
    shifts = [(i, j) for i in range(5) for j in range(6)]
    expected = sum(kernel[:, i, j, None, None] * x.roll((i, j), (2, 3)) for i, j in shifts)
    torch.testing.assert_close(fourier_filter(x, weight), expected)


def test_the_fourier_filter_keeps_the_type():
    x, weight = torch.randn(2, 3, 5, 6), torch.randn(3, 5, 4, 2)
    y = fourier_filter(x.bfloat16(), weight.bfloat16())
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(
        y.float(), fourier_filter(x.bfloat16().float(), weight.bfloat16().float()), atol=0.05, rtol=0.02
    )


def test_local_and_global_channels_alternate():
    module = GlobalLocalFilter(6, 4, 3)
    with torch.no_grad():
        module.dw.weight.zero_()
        local = module.post_norm(torch.stack([torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)], 2).flatten(1, 2))
        module.complex_weight.zero_()
        module.complex_weight[:, 0, 0, 0] = 1.0  # the mean
        module.pre_norm.bias.fill_(1.0)
        module.pre_norm.weight.zero_()
        found = module(torch.randn(1, 6, 4, 4))
    torch.testing.assert_close(found, local, rtol=1e-4, atol=1e-4)


def test_resizing_keeps_corners_and_planes():
    weight = torch.randn(2, 4, 3, 2)
    resized = resize_spectrum(weight, 9, 5)
    assert resized.shape == (2, 9, 5, 2)
    torch.testing.assert_close(resized[:, [0, -1]][:, :, [0, -1]], weight[:, [0, -1]][:, :, [0, -1]])
    torch.testing.assert_close(resize_spectrum(weight[..., :1], 9, 5), resized[..., :1])
    assert resize_spectrum(weight, 4, 3) is weight


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_dim": 8, "order": 0}, "order is 0"),
        ({"in_dim": 8, "order": 5}, "dim 8 is too small for order 5. Take at least 16 channels"),
        ({"in_dim": 8, "order": 2, "kernel_size": 4}, "kernel_size is 4. Take an odd one"),
        ({"in_dim": 8, "order": 2, "proj_out": False, "out_dim": 3}, "out_dim is 3, but dim 8"),
        ({"in_dim": 9, "order": 2, "filter_size": (4, 3)}, "a global-local filter of 13 channels"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        GnConv(**arguments)


@pytest.mark.parametrize("grad", [False, True])
def test_layers_that_are_watched_or_replaced_are_called(grad):
    gnconv, x = GnConv(16, order=3), torch.randn(1, 16, 6, 6)
    seen = []
    for layer in (gnconv.dwconv, gnconv.pws[1]):
        layer.register_forward_hook(lambda module, _inputs, _output: seen.append(module))
    with torch.set_grad_enabled(grad):
        gnconv(x)
    assert seen == [gnconv.dwconv, gnconv.pws[1]]
    gnconv = GnConv(16, order=3)
    gnconv.proj_out = nn.Sequential(gnconv.proj_out, nn.Softplus())
    with torch.set_grad_enabled(grad):
        assert gnconv(x).min() > 0
