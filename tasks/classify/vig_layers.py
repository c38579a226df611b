"""What ViG and ViG-H are made of: their layers in the order that data takes, and timm's interface around them.

Source: "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention", Liao et al., arXiv 2405.18425.

Legend: B images, H and W tokens down and across, T = H W, C channels. Maps are channels-last, ``[B, H, W, C]``.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import (
    ClassifierHead,
    DropPath,
    LayerScale,
    get_device_dtype,
    register_notrace_function,
    trunc_normal_,
)
from timm.models import checkpoint, checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from toolkit.blocks.linear_attention import BidirectionalGatedLinearAttention
from toolkit.blocks.swiglu import SwiGLU
from toolkit.errors import InputError

XAVIER_GAIN = 2**-2.5


class PatchEmbed(nn.Module):
    """Two overlapping convolutions, each followed by a norm over channels.

    Args:
        in_chans: channels of the image.
        dim: C; half of it after the first convolution.
        kernels: their sizes.
        strides: their strides.
        act: between them.
    """

    def __init__(
        self, in_chans: int, dim: int, kernels: Sequence[int], strides: Sequence[int], act: nn.Module, **dd: Any
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, kernels[0], strides[0], padding=1, **dd)
        self.norm1 = nn.LayerNorm(dim // 2, eps=1e-5, **dd)
        self.act = act
        self.conv2 = nn.Conv2d(dim // 2, dim, kernels[1], strides[1], padding=1, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, pixels, pixels]`` to ``[B, H, W, C]``."""
        x = self.conv1(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        x = self.act(self.norm1(x))
        return self.norm2(self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class PositionEmbed(nn.Module):
    """Add a learned vector per place of the grid, resized for another grid.

    Args:
        grid_size: rows and columns that the vectors are made for.
        dim: C.
    """

    def __init__(self, grid_size: tuple[int, int], dim: int, **dd: Any):
        super().__init__()
        self.grid_size = grid_size
        self.weight = nn.Parameter(torch.empty(1, grid_size[0] * grid_size[1], dim, **dd))
        trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` to the same."""
        _, H, W, C = x.shape
        return x + resize_positions(self.weight, self.grid_size, H, W).view(1, H, W, C)


@register_notrace_function
def resize_positions(positions: Tensor, grid_size: tuple[int, int], height: int, width: int) -> Tensor:
    """Bicubic resize of ``[1, N, C]`` from one grid to another, in float32; a leaf for tracers: it looks at sizes."""
    if torch.jit.is_scripting() or torch.jit.is_tracing():
        fits = grid_size[0] == height and grid_size[1] == width
    else:  # a program for images of any size must not take the answer for one of them as given
        fits = statically_known_true(grid_size[0] == height) and statically_known_true(grid_size[1] == width)
    if fits:
        return positions
    grid = positions.float().reshape(1, grid_size[0], grid_size[1], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=[height, width], mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)


class Downsample(nn.Module):
    """Half the grid: a convolution with stride 2 and a norm over channels."""

    def __init__(self, dim: int, out: int, **dd: Any):
        super().__init__()
        self.conv = nn.Conv2d(dim, out, 3, 2, padding=1, **dd)
        self.norm = nn.LayerNorm(out, eps=1e-5, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class TokenMixer(nn.Module):
    """Gated attention along the tokens, and a convolution that brings in their neighbours on the grid.

    Section "2D gating locality injection" of the paper: the convolution feeds everything, and a gate per channel weighs
    attention against it, both normalised per head.

    Args:
        dim: C.
        num_heads: heads of attention, which each norm sees apart.
        expand_k: channels of all keys, as a multiple of ``dim``.
        gate_rank: rank of the map to the decays.
        gate_normalizer: divides the log decays.
        conv_act: SiLU after the convolution.
        out_act: SiLU before the output projection.
        norm_eps: of the norms per head.
        share: of each direction in what attention returns.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        expand_k: float,
        gate_rank: int,
        gate_normalizer: float,
        conv_act: bool,
        out_act: bool,
        norm_eps: float,
        share: float,
        **dd: Any,
    ):
        super().__init__()
        self.conv_act, self.out_act = conv_act, out_act
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False, **dd)
        self.attention = BidirectionalGatedLinearAttention(
            dim,
            num_heads,
            key_dim=int(dim * expand_k),
            gate_rank=gate_rank,
            gate_normalizer=gate_normalizer,
            share=share,
            **dd,
        )
        self.g_proj = nn.Linear(dim, dim, **dd)
        self.g_norm = nn.RMSNorm(dim // num_heads, eps=norm_eps, **dd)
        self.l_norm = nn.RMSNorm(dim // num_heads, eps=norm_eps, **dd)
        self.o_proj = nn.Linear(dim, dim, bias=False, **dd)
        nn.init.xavier_uniform_(self.dwconv.weight, gain=XAVIER_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` to the same."""
        B, H, W, C = x.shape
        local = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(B, H * W, C)
        if self.conv_act:
            local = F.silu(local)
        attended = self.attention(local)  # [B, T, heads, V]
        gate = torch.sigmoid(self.g_proj(local)).view(attended.shape)
        local = self.l_norm(local.view(attended.shape))
        mixed = torch.lerp(local, self.g_norm(attended), gate.to(local.dtype))
        if self.out_act:
            mixed = F.silu(mixed)
        return self.o_proj(mixed.view(B, H, W, C))

    def init_xavier(self) -> None:
        """Plain ViG's initial matrices: small, so that decays start near sigmoid(0)^(1/16) = 0.96."""
        matrices = (self.attention.qkv_proj, *self.attention.gk_proj, self.g_proj, self.o_proj)
        for layer in matrices:
            nn.init.xavier_uniform_(layer.weight, gain=XAVIER_GAIN)


class Block(nn.Module):
    """Mixing along the tokens, then a perceptron for each, both pre-norm and residual."""

    def __init__(
        self,
        mixer: TokenMixer,
        norms: Sequence[nn.Module],
        hidden: int,
        drop_path: float,
        init_values: float | None,
        **dd: Any,
    ):
        super().__init__()
        self.norm1, self.norm2 = norms
        self.mixer = mixer
        dim = mixer.o_proj.out_features
        self.mlp = SwiGLU(dim, hidden, **dd)
        scales = [LayerScale(dim, init_values, **dd) if init_values else nn.Identity() for _ in range(2)]
        self.ls1, self.ls2 = scales
        self.drop_path1, self.drop_path2 = (DropPath(drop_path) if drop_path else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` to the same."""
        x = x + self.drop_path1(self.ls1(self.mixer(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class Stage(nn.Module):
    """Blocks on one grid, after the step down to it."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Backbone(nn.Module):
    """What both families share: timm's interface around ``patch_embed``, ``pos_embed``, ``layers``, ``norm``, ``head``.

    Args:
        patch_embed: images to maps.
        pos_embed: adds positions, or nothing.
        layers: maps to maps; a feature map can be taken after each.
        feature_info: timm's description of those.
        norm: for the last of them.
        num_classes: 0 for none.
        global_pool: ``avg``, or empty to keep the map.
        drop_rate: dropout before the classifier.
    """

    device = dtype = None  # where a model was built is no part of its description
    output_fmt = "NHWC"

    def __init__(
        self,
        patch_embed: nn.Module,
        pos_embed: nn.Module,
        layers: Sequence[nn.Module],
        feature_info: list[dict[str, Any]],
        norm: nn.Module,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        **dd: Any,
    ):
        super().__init__()
        self.num_classes, self.global_pool, self.drop_rate = num_classes, global_pool, drop_rate
        self.feature_info, self.grad_checkpointing = feature_info, False
        self.num_features: int = feature_info[-1]["num_chs"]
        self.patch_embed, self.pos_embed = patch_embed, pos_embed
        self.layers = nn.Sequential(*layers)
        self.norm = norm
        self.head = ClassifierHead(
            self.num_features, num_classes, global_pool, drop_rate, input_fmt=self.output_fmt, **dd
        )
        self.head_hidden_size = self.head.num_features
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head; 0 classes leave the pooled features."""
        dd = get_device_dtype(self)  # a head without classes has no parameters to tell
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **dd)
        self.head_hidden_size = self.head.num_features

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Nothing beside what timm exempts anyway: the published recipe decays positions and depthwise kernels."""
        return set()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """``[B, channels, pixels, pixels]`` to the normalised map ``[B, H, W, C]``."""
        x = self.pos_embed(self.patch_embed(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.layers, x)
        else:
            x = self.layers(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A map ``[B, H, W, C]`` to logits, or to the pooled ``[B, C]``."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, pixels, pixels]`` to logits ``[B, classes]``."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps after some layers, as timm's models return them.

        Args:
            x: images.
            indices: which of ``feature_info``: the last so many, a list of positions, or all.
            norm: normalise those maps that the final norm fits.
            stop_early: compute nothing after the last of them.
            output_fmt: ``NCHW`` or ``NHWC``.
            intermediates_only: return the maps alone.

        Returns:
            The result of ``forward_features`` (the last map that was computed, with ``stop_early``), and the maps.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise InputError(f"output_fmt is {output_fmt!r}", "Choose NCHW or NHWC")
        wanted, last = feature_take_indices(len(self.layers), indices)
        maps = []
        x = self.pos_embed(self.patch_embed(x))
        for number, layer in enumerate(self.layers[: last + 1] if stop_early else self.layers):
            x = checkpoint(layer, x) if self.grad_checkpointing else layer(x)
            if number in wanted:
                fits = x.shape[-1] == self.num_features
                y = self.norm(x) if norm and fits else x
                maps.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        return maps if intermediates_only else (self.norm(x) if x.shape[-1] == self.num_features else x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers after the last of the wanted maps; returns the positions of the maps."""
        wanted, last = feature_take_indices(len(self.layers), indices)
        width = self.feature_info[last]["num_chs"]
        fits = width == self.num_features
        self.layers = self.layers[: last + 1]
        if prune_norm or not fits:
            self.norm = nn.Identity()
        if prune_head or not fits:
            self.num_features = width
            self.reset_classifier(0, "")
        return wanted
