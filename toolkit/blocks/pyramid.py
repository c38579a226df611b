"""Gated recursive convolutions in decoders: the HorFPN neck, and the fusion of a decoder's levels.

"HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions", Rao et al., NeurIPS 2022, section
3.3. The pyramid is that of "Feature Pyramid Networks for Object Detection", Lin et al., CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.blocks.conv import GnConv
from toolkit.errors import InputError


class HorFPN(nn.Module):
    """A feature pyramid whose 3x3 output convolutions are gnConvs without scale.

    Args:
        in_dims: channels of the backbone's maps, finest first.
        out_dim: channels of every output.
        num_outs: outputs; those beyond the number of inputs are the coarsest one, every second pixel of it.
        order: of the gnConvs.
        kernel_size: as of ``GnConv``.
        filter_size: half spectrum of global-local filters that take the place of the depthwise convolutions; the
            published one is (32, 17). It is resized to each map.
        device, dtype: of the parameters.

    Raises:
        InputError: fewer outputs than inputs, or sizes that a gnConv cannot have.
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        out_dim: int = 256,
        *,
        num_outs: int = 5,
        order: int = 2,
        kernel_size: int | None = None,
        filter_size: tuple[int, int] | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if num_outs < len(in_dims):
            raise InputError(f"num_outs is {num_outs}, but there are {len(in_dims)} in_dims", "Raise num_outs")
        self.num_outs = num_outs
        factory = {"device": device, "dtype": dtype}
        self.lateral_convs = nn.ModuleList(nn.Conv2d(dim, out_dim, 1, **factory) for dim in in_dims)
        self.fpn_convs = nn.ModuleList(
            GnConv(out_dim, order=order, kernel_size=kernel_size, filter_size=filter_size, **factory) for _ in in_dims
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps ``[B, in_dims[i], H_i, W_i]`` to ``num_outs`` maps ``[B, out_dim, ...]``, finest first.

        Raises:
            InputError: another number of maps than of ``in_dims``.
        """
        if len(maps) != len(self.lateral_convs):
            raise InputError(f"{len(maps)} maps for a neck of {len(self.lateral_convs)}", "Give one per in_dims")
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        outs = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=True)]
        while len(outs) < self.num_outs:
            outs.append(outs[-1][:, :, ::2, ::2])
        return outs


class FusionConv(nn.Module):
    """A gnConv without scale, batch normalisation and ReLU, where UPerNet fuses its levels by a 3x3 convolution.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output, and times ``dim_ratio`` those inside.
        order: of the gnConv.
        kernel_size: as of ``GnConv``.
        filter_size: half spectrum of a global-local filter that takes the place of the depthwise convolution.
        dim_ratio: channels inside per channel of the output.
        proj_out: False leaves out the last 1x1 convolution; then the channels inside are the output's.
        norm: batch normalisation.
        activation: ReLU.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        order: int = 2,
        *,
        kernel_size: int | None = None,
        filter_size: tuple[int, int] | None = None,
        dim_ratio: int = 1,
        proj_out: bool = True,
        norm: bool = True,
        activation: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        dim = out_dim * dim_ratio
        self.gnconv = GnConv(
            in_dim,
            dim,
            order,
            kernel_size=kernel_size,
            filter_size=filter_size,
            out_dim=out_dim if proj_out else None,
            proj_out=proj_out,
            **factory,
        )
        self.bn = nn.BatchNorm2d(out_dim if proj_out else dim, **factory) if norm else nn.Identity()
        self.act = nn.ReLU() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_dim, H, W]`` to ``[B, out_dim, H, W]``."""
        return self.act(self.bn(self.gnconv(x)))
