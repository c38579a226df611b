"""HorNet as one writes it from the paper: channels first, a LayerNorm by hand, permutes around the perceptron.

The names of its entries are those of official checkpoints. A baseline for ``benchmarks/backbones.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.tasks.classify.hornet import HorNet, rename


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of ``[B, C, H, W]``, operation by operation."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class PlainFilter(nn.Module):
    """The global-local filter."""

    def __init__(self, dim: int, height: int, width: int):
        super().__init__()
        self.dw = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, bias=False, groups=dim // 2)
        self.complex_weight = nn.Parameter(torch.randn(dim // 2, height, width, 2) * 0.02)
        self.pre_norm, self.post_norm = ChannelNorm(dim), ChannelNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        local, whole = torch.chunk(self.pre_norm(x), 2, dim=1)
        local = self.dw(local)
        height, width = whole.shape[-2:]
        spectrum = torch.fft.rfft2(whole.float(), dim=(2, 3), norm="ortho")
        weight = self.complex_weight
        if weight.shape[1:3] != spectrum.shape[2:4]:
            planes = F.interpolate(
                weight.permute(3, 0, 1, 2), size=spectrum.shape[2:4], mode="bilinear", align_corners=True
            )
            weight = planes.permute(1, 2, 3, 0)
        spectrum = spectrum * torch.view_as_complex(weight.contiguous())
        whole = torch.fft.irfft2(spectrum, s=(height, width), dim=(2, 3), norm="ortho")
        both = torch.cat((local.unsqueeze(2), whole.unsqueeze(2)), dim=2)
        return self.post_norm(both.reshape(x.shape))


class PlainGnConv(nn.Module):
    """The recursive gated convolution."""

    def __init__(self, dim: int, order: int, filter_size: tuple[int, int] | None, scale: float):
        super().__init__()
        self.widths, self.scale = [dim // 2 ** (order - 1 - i) for i in range(order)], scale
        filtered = sum(self.widths)
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        if filter_size is None:
            self.dwconv = nn.Conv2d(filtered, filtered, 7, padding=3, groups=filtered)
        else:
            self.dwconv = PlainFilter(filtered, *filter_size)
        self.proj_out = nn.Conv2d(dim, dim, 1)
        pairs = itertools.pairwise(self.widths)
        self.pws = nn.ModuleList(nn.Conv2d(narrow, wide, 1) for narrow, wide in pairs)

    def forward(self, x: Tensor) -> Tensor:
        a, rest = torch.split(self.proj_in(x), (self.widths[0], sum(self.widths)), dim=1)
        factors = torch.split(self.dwconv(rest) * self.scale, self.widths, dim=1)
        x = a * factors[0]
        for pointwise, factor in zip(self.pws, factors[1:], strict=True):
            x = pointwise(x) * factor
        return self.proj_out(x)


class PlainBlock(nn.Module):
    """gnConv and perceptron, each with its norm, scale and sum."""

    def __init__(self, dim: int, order: int, filter_size: tuple[int, int] | None, scale: float):
        super().__init__()
        self.norm1, self.gnconv = ChannelNorm(dim), PlainGnConv(dim, order, filter_size, scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma1, self.gamma2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1.view(-1, 1, 1) * self.gnconv(self.norm1(x))
        y = self.norm2(x.permute(0, 2, 3, 1))
        y = self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + (self.gamma2 * y).permute(0, 3, 1, 2)


class PlainHorNet(nn.Module):
    """A classifier with the sizes and weights of one of ours."""

    def __init__(self, model: HorNet):
        super().__init__()
        dims: Sequence[int] = model.dims
        stem = nn.Sequential(nn.Conv2d(model.in_chans, dims[0], 4, stride=4), ChannelNorm(dims[0]))
        halvings = [
            nn.Sequential(ChannelNorm(dim), nn.Conv2d(dim, following, 2, stride=2))
            for dim, following in itertools.pairwise(dims)
        ]
        self.downsample_layers = nn.ModuleList([stem, *halvings])
        filters = model.filter_sizes or [None] * len(dims)
        rows = zip(model.depths, dims, model.orders, filters, strict=True)
        self.stages = nn.ModuleList(
            nn.Sequential(*(PlainBlock(dim, order, filter_size, model.scale) for _ in range(depth)))
            for depth, dim, order, filter_size in rows
        )
        self.norm, self.head = nn.LayerNorm(dims[-1], eps=1e-6), nn.Linear(dims[-1], model.num_classes)
        weights = model.state_dict()
        self.load_state_dict({key: weights[rename(key)] for key in self.state_dict()})

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((-2, -1))))
