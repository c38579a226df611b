"""Gated recursive convolution, its global-local filter, and what its users need to infer as fast.

"HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions", Rao et al., NeurIPS 2022. The
Fourier filter is that of "Global Filter Networks for Image Classification", Rao et al., NeurIPS 2021.

Where no gradient is wanted, on a CPU in float32, a gnConv works on channels-last memory: the 1x1 convolutions are
matrix products over tokens, and what follows the spatial filter is done for some tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp, register_notrace_function, register_notrace_module
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from toolkit.errors import InputError
from toolkit.kernels.gnconv import Weights, gated_recursion, gnconv

TILE = 4096  # tokens per thread whose hidden channels stay in the last cache
SMALL = 1 << 23  # multiply-adds below which a product is not worth oneDNN's 15 microseconds of preparation


@register_notrace_module
class GnConv(nn.Module):
    """Recursive gated convolution (gnConv) of order n on d channels; section 3.1 of the paper.

    ``a, r = proj_in(x)``, ``b = scale * F(r)``; ``p_0 = a * b_0``, ``p_(i+1) = pws_i(p_i) * b_(i+1)``;
    ``y = proj_out(p_(n-1))``. The b_i are b cut into widths ``w_i = d // 2^(n-1-i)``, and a has w_0 channels.
    F is a depthwise convolution, or a global-local filter. There is no activation inside: outside of HorNet's recipe
    the product of n factors may grow beyond all bounds, which its scale of 1/3 is there to prevent.

    Args:
        in_dim: channels of the input.
        dim: d, channels of the last product; as ``in_dim`` by default. The published models take powers of two times
            their smallest width; any other works, too.
        order: n, number of factors.
        kernel_size: of the depthwise convolution, odd; by default 7, and 3 in a global-local filter.
        filter_size: height and width of the half spectrum of a ``GlobalLocalFilter``, which then takes the place of
            the depthwise convolution.
        scale: of the filtered channels.
        out_dim: channels of the output; d by default.
        proj_out: False leaves out the last 1x1 convolution.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        InputError: sizes that cannot be.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int | None = None,
        order: int = 5,
        *,
        kernel_size: int | None = None,
        filter_size: tuple[int, int] | None = None,
        scale: float = 1.0,
        out_dim: int | None = None,
        proj_out: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dim = in_dim if dim is None else dim
        if order < 1:
            raise InputError(f"order is {order}", "Take at least 1, the number of factors")
        if dim < 1 << (order - 1):
            raise InputError(f"dim {dim} is too small for order {order}", f"Take at least {1 << (order - 1)} channels")
        kernel_size = kernel_size or (7 if filter_size is None else 3)
        if kernel_size % 2 == 0:
            raise InputError(f"kernel_size is {kernel_size}", "Take an odd one")
        if not proj_out and out_dim not in (None, dim):
            raise InputError(f"out_dim is {out_dim}, but dim {dim}, and there is no proj_out", "Leave out_dim out")
        self.dim, self.order, self.scale = dim, order, scale
        self.widths = [dim >> (order - 1 - i) for i in range(order)]
        self.parts = [self.widths[0], sum(self.widths)]
        filtered = self.parts[1]

        factory = {"device": device, "dtype": dtype}
        self.proj_in = nn.Conv2d(in_dim, sum(self.parts), 1, **factory)
        self.dwconv: nn.Module
        if filter_size is None:
            self.dwconv = nn.Conv2d(
                filtered, filtered, kernel_size, padding=kernel_size // 2, groups=filtered, **factory
            )
        else:
            self.dwconv = GlobalLocalFilter(filtered, *filter_size, kernel_size=kernel_size, **factory)
        self.pws = nn.ModuleList(
            nn.Conv2d(width, following, 1, **factory)
            for width, following in zip(self.widths[:-1], self.widths[1:], strict=True)
        )
        self.proj_out = nn.Conv2d(dim, out_dim or dim, 1, **factory) if proj_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_dim, H, W]`` to ``[B, out_dim, H, W]``."""
        # TorchScript leaves out a block, but not the rest of a condition.
        if not torch.jit.is_scripting():  # noqa: SIM102
            if self.is_plain() and not torch._C._are_functorch_transforms_active():
                return self._infer(x) if only_infers_on_cpu(x) else self._differentiable(x)
        halves = self.proj_in(x).split(self.parts, dim=1)
        factors = (self.dwconv(halves[1]) * self.scale).split(self.widths, dim=1)
        p = halves[0] * factors[0]
        for i, pointwise in enumerate(self.pws):
            p = pointwise(p) * factors[i + 1]
        return self.proj_out(p)

    def is_plain(self) -> bool:
        """Whether the layers are the constructor's, and nobody watches them."""
        return are_plain(self.proj_in, self.dwconv, *self.pws, self.proj_out)

    def _differentiable(self, x: Tensor) -> Tensor:
        chain = [parameters(pointwise) for pointwise in self.pws]
        pws_weights, pws_biases = tuple(weight for weight, _ in chain), tuple(bias for _, bias in chain)
        whole = sum(self.parts) == 2 * self.dim  # for these widths there is one operator
        if whole and isinstance(self.dwconv, nn.Conv2d):
            leave = parameters(self.proj_out) if isinstance(self.proj_out, nn.Conv2d) else (None, None)
            weights = Weights(*parameters(self.proj_in), *parameters(self.dwconv), pws_weights, pws_biases, *leave)
            return gnconv(x, weights, scale=self.scale)
        a, r = self.proj_in(x).split(self.parts, dim=1)
        return self.proj_out(gated_recursion(a, self.scale * self.dwconv(r), pws_weights, pws_biases)[-1])

    def _infer(self, x: Tensor) -> Tensor:
        tiles = list(self.tiles(x))
        tokens = tiles[0] if len(tiles) == 1 else torch.cat(tiles)
        return tokens.view(x.shape[0], *x.shape[2:], tokens.shape[1]).permute(0, 3, 1, 2)

    def tiles(self, x: Tensor) -> Iterator[Tensor]:
        """The output for ``[B, in_dim, H, W]`` as matrices ``[tokens, out_dim]``, cut where ``tiled`` cuts.

        For layers that ``is_plain`` and inputs that ``only_infers_on_cpu`` accepts.
        """
        tokens = x.permute(0, 2, 3, 1)  # [B, H, W, C]
        weight, bias = parameters(self.proj_in)
        a, r = (dense(tokens, w, c) for w, c in zip(weight.split(self.parts), bias.split(self.parts), strict=True))
        r = r.permute(0, 3, 1, 2)
        if isinstance(self.dwconv, nn.Conv2d):
            kernel, shift = (self.scale * parameter for parameter in parameters(self.dwconv))
            b = F.conv2d(r, kernel, shift, padding=kernel.shape[-1] // 2, groups=self.parts[1])
        else:
            b = self.dwconv(r).mul_(self.scale)

        for p, factors in zip(tiled(a), tiled(b.permute(0, 2, 3, 1)), strict=True):
            first, *others = factors.split(self.widths, dim=1)
            p = p.mul_(first)
            for pointwise, factor in zip(self.pws, others, strict=True):
                p = dense(p, *parameters(pointwise)).mul_(factor)
            yield dense(p, *parameters(self.proj_out)) if isinstance(self.proj_out, nn.Conv2d) else p


class GlobalLocalFilter(nn.Module):
    """Half of the channels pass a depthwise convolution, half a filter of their whole map; section 3.2 of the paper.

    Channels 2j of the output are local, channels 2j + 1 global.

    Args:
        dim: channels, even.
        height: of the half spectrum: that of the maps.
        width: of the half spectrum: ``W // 2 + 1`` for maps of width W. Maps of other sizes are taken, too.
        kernel_size: of the depthwise convolution.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, dim: int, height: int = 14, width: int = 8, *, kernel_size: int = 3, device=None, dtype=None):
        super().__init__()
        if dim % 2:
            raise InputError(f"a global-local filter of {dim} channels", "It halves them: take an even number")
        factory = {"device": device, "dtype": dtype}
        self.dw = nn.Conv2d(
            dim // 2, dim // 2, kernel_size, padding=kernel_size // 2, bias=False, groups=dim // 2, **factory
        )
        self.complex_weight = nn.Parameter(torch.empty(dim // 2, height, width, 2, **factory))  # real, imaginary
        nn.init.trunc_normal_(self.complex_weight, std=0.02)
        self.pre_norm = LayerNorm2d(dim, eps=1e-6, **factory)
        self.post_norm = LayerNorm2d(dim, eps=1e-6, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, dim, H, W]`` to the same shape."""
        local, whole = self.pre_norm(x).chunk(2, dim=1)
        local, whole = self.dw(local), fourier_filter(whole, self.complex_weight)
        both = torch.stack((local.permute(0, 2, 3, 1), whole.permute(0, 2, 3, 1)), dim=-1)
        return self.post_norm(both.flatten(3).permute(0, 3, 1, 2))


@register_notrace_function
def fourier_filter(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply each channel's half spectrum by its own weights: a circular convolution with a kernel as large as x.

    Computed in float32 at least, whatever the type.

    Args:
        x: ``[B, C, H, W]``.
        weight: ``[C, h, w, 2]``, real and imaginary parts; resized to the spectrum of x.

    Returns:
        ``[B, C, H, W]`` in x's type.
    """
    if x.shape[0] == 0:  # which the library of Fourier transforms refuses
        return x
    height, width = x.shape[-2], x.shape[-1]
    exact = x if x.dtype == torch.float64 else x.float()
    factors = torch.view_as_complex(resize_spectrum(weight, height, width // 2 + 1).to(exact.dtype).contiguous())
    spectrum = torch.fft.rfft2(exact, norm="ortho") * factors
    return torch.fft.irfft2(spectrum, s=[height, width], norm="ortho").to(x.dtype)


def resize_spectrum(weight: Tensor, height: int, width: int) -> Tensor:
    """``[C, h, w, 2]`` to ``[C, height, width, 2]``, bilinear between the outermost entries."""
    if torch.jit.is_scripting() or torch.jit.is_tracing():
        fits = weight.shape[1] == height and weight.shape[2] == width
    else:  # a program for maps of any size must not take the answer for one of them as given
        fits = statically_known_true(weight.shape[1] == height) and statically_known_true(weight.shape[2] == width)
    if fits:
        return weight
    planes = weight.permute(3, 0, 1, 2)
    planes = planes if weight.dtype == torch.float64 else planes.float()
    planes = F.interpolate(planes, size=[height, width], mode="bilinear", align_corners=True)
    return planes.permute(1, 2, 3, 0).to(weight.dtype)


PLAIN = (nn.Conv2d, nn.Linear, nn.Identity, nn.GELU, nn.Dropout, DropPath, Mlp, GlobalLocalFilter, GnConv)


def are_plain(*layers: nn.Module) -> bool:
    """Whether these layers may be passed over for their parameters: nobody has replaced them, or waits for a call."""
    return all(type(layer) in PLAIN and not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers)


def only_infers_on_cpu(x: Tensor) -> bool:
    """Whether a forward may overwrite what it computes: no gradient, no compiler or tracer, eager float32 on a CPU."""
    return (
        type(x) is Tensor  # and no stand-in, such as torch.fx's
        and not torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and x.is_cpu
        and x.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def tiled(x: Tensor) -> tuple[Tensor, ...]:
    """``[..., C]`` as matrices of so many tokens that what is made of them stays in the cache."""
    return x.reshape(-1, x.shape[-1]).split(TILE * torch.get_num_threads())


# PyTorch's own linear layer calls another library on most CPUs, which is some percent slower at these sizes.
_onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def dense(x: Tensor, weight: Tensor, bias: Tensor, gelu: str | None = None) -> Tensor:
    """``F.linear`` in float32 on a CPU, without gradients, and optionally a GELU.

    Args:
        x: ``[..., C]``.
        weight: of a linear layer or a 1x1 convolution.
        bias: a number per channel of the output.
        gelu: None, or the ``approximate`` of ``F.gelu``.
    """
    weight = weight.flatten(1)
    if _onednn_linear is None or x.numel() * weight.shape[0] < SMALL:
        y = F.linear(x, weight, bias)
        return y if gelu is None else F.gelu(y, approximate=gelu)
    return _onednn_linear(x, weight, bias, "none" if gelu is None else "gelu", [], gelu or "")


def parameters(layer: nn.Module) -> tuple[Any, Any]:
    return layer.weight, layer.bias
