"""ViG and ViG-H: vision backbones whose tokens mix by bidirectional gated linear attention.

"ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention", Liao et al., arXiv 2405.18425. Compute
and memory grow linearly with the number of pixels, and any input size works.

Importing this file registers ``vig_{tiny,small,base}`` and ``vig_h_{tiny,small,base}`` with timm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from toolkit.errors import InputError
from toolkit.tasks.classify.vig_layers import (
    Backbone,
    Block,
    Downsample,
    PatchEmbed,
    PositionEmbed,
    Stage,
    TokenMixer,
    resize_positions,
)

VARIANTS = {"vig": "ViG", "vig_h": "HierarchicalViG"}


class ViG(Backbone):
    """Plain ViG: one grid throughout, learned positions, RMS norms.

    Args:
        img_size: pixels that the position embedding is made for; it is resized for images of another size.
        in_chans: channels of the image.
        num_classes: 0 for none.
        global_pool: ``avg``, or empty to keep the map.
        patch_size: pixels from one token to the next: even, at least 4. 16 is the published 9x9 convolution with stride
            8, then 3x3 with stride 2; 4, for small images, is 3x3 with stride 2 twice.
        embed_dim: C.
        depth: blocks.
        num_heads: heads of attention.
        expand_k: channels of all keys, as a multiple of ``embed_dim``.
        gate_rank: rank of the map to the decays.
        gate_normalizer: divides the log decays.
        mlp_ratio: hidden channels of an ungated perceptron of the same size, as a multiple of ``embed_dim``.
        mlp_multiple: hidden channels are rounded up to a multiple of it.
        conv_act: SiLU after the mixers' convolution.
        out_act: SiLU before the mixers' output projection.
        init_values: of a scale per channel of each branch; None, as published, for no scale.
        norm_eps: of all norms in the blocks, and of the last.
        drop_rate: dropout before the classifier.
        drop_path_rate: rate of dropping a branch, rising linearly to this.

    Raises:
        InputError: sizes that do not fit together.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        expand_k: float = 0.5,
        gate_rank: int = 16,
        gate_normalizer: float = 16.0,
        mlp_ratio: float = 4.0,
        mlp_multiple: int = 256,
        conv_act: bool = False,
        out_act: bool = False,
        init_values: float | None = None,
        norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        check_sizes(embed_dim=embed_dim, depth=depth, in_chans=in_chans, gate_rank=gate_rank, num_heads=num_heads)
        if patch_size < 4 or patch_size % 2:
            raise InputError(
                f"patch_size is {patch_size}", "Choose an even size of at least 4; 16 is the published one"
            )
        dd = {"device": device, "dtype": dtype}
        step = patch_size // 2
        patch_embed = PatchEmbed(in_chans, embed_dim, (step + 1, 3), (step, 2), nn.SiLU(), **dd)
        rows, columns = (((size + 1 - step) // step) // 2 + 1 for size in to_2tuple(img_size))
        if min(rows, columns) < 1:
            raise InputError(f"img_size {img_size} is smaller than a patch of {patch_size}", "Lower patch_size")
        pos_embed = PositionEmbed((rows, columns), embed_dim, **dd)

        hidden = swiglu_hidden(embed_dim, mlp_ratio, mlp_multiple)
        blocks = []
        for rate in drop_path_rates(drop_path_rate, depth):
            mixer = TokenMixer(
                embed_dim,
                num_heads,
                expand_k=expand_k,
                gate_rank=gate_rank,
                gate_normalizer=gate_normalizer,
                conv_act=conv_act,
                out_act=out_act,
                norm_eps=norm_eps,
                share=0.25,  # as the published evaluation; its training takes 0.5, which the next norm all but undoes
                **dd,
            )
            norms = [nn.RMSNorm(embed_dim, eps=norm_eps, **dd) for _ in range(2)]
            blocks.append(Block(mixer, norms, hidden, rate, init_values, **dd))
        feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"layers.{number}"} for number in range(depth)
        ]
        norm = nn.RMSNorm(embed_dim, eps=norm_eps, **dd)
        super().__init__(patch_embed, pos_embed, blocks, feature_info, norm, num_classes, global_pool, drop_rate, **dd)
        for block in blocks:
            block.mixer.init_xavier()

        self.img_size, self.in_chans, self.patch_size = img_size, in_chans, patch_size
        self.embed_dim, self.depth, self.num_heads = embed_dim, depth, num_heads
        self.expand_k, self.gate_rank, self.gate_normalizer = expand_k, gate_rank, gate_normalizer
        self.mlp_ratio, self.mlp_multiple, self.init_values = mlp_ratio, mlp_multiple, init_values
        self.conv_act, self.out_act, self.norm_eps, self.drop_path_rate = conv_act, out_act, norm_eps, drop_path_rate

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters by depth, for rates that decay with it."""
        return {"stem": r"^patch_embed|^pos_embed", "blocks": [(r"^layers\.(\d+)", None), (r"^norm", (99999,))]}


class HierarchicalViG(Backbone):
    """ViG-H: stages on smaller and smaller grids, no positions, layer norms.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for none.
        global_pool: ``avg``, or empty to keep the map.
        patch_size: pixels from one token to the next in the first stage: 4 as published; 2 or 1 for small images.
        dims: C of each stage; each later one halves the grid.
        depths: blocks of each stage.
        num_heads: heads of attention of each stage.
        expand_k: channels of all keys, as a multiple of the stage's width.
        gate_rank: rank of the map to the decays.
        gate_normalizer: divides the log decays.
        mlp_ratio: hidden channels of an ungated perceptron of the same size, as a multiple of the width.
        mlp_multiple: hidden channels are rounded up to a multiple of it.
        conv_act: SiLU after the mixers' convolution.
        out_act: SiLU before the mixers' output projection.
        norm_eps: of the norms per head.
        drop_rate: dropout before the classifier.
        drop_path_rate: rate of dropping a branch, rising linearly to this.

    Raises:
        InputError: sizes that do not fit together.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        patch_size: int = 4,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 5, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        expand_k: float = 0.5,
        gate_rank: int = 16,
        gate_normalizer: float = 16.0,
        mlp_ratio: float = 4.0,
        mlp_multiple: int = 32,
        conv_act: bool = False,
        out_act: bool = False,
        norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        if not 0 < len(dims) == len(depths) == len(num_heads):
            raise InputError(
                f"dims {list(dims)}, depths {list(depths)} and num_heads {list(num_heads)} are not of one length",
                "Give one number per stage",
            )
        check_sizes(dims=min(dims), depths=min(depths), in_chans=in_chans, gate_rank=gate_rank)
        if patch_size not in (1, 2, 4):
            raise InputError(f"patch_size is {patch_size}", "Choose 4, as published, 2 or 1")
        dd = {"device": device, "dtype": dtype}
        strides = {4: (2, 2), 2: (2, 1), 1: (1, 1)}[patch_size]
        patch_embed = PatchEmbed(in_chans, dims[0], (3, 3), strides, nn.GELU(), **dd)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        stages = []
        for number, (dim, depth, heads) in enumerate(zip(dims, depths, num_heads, strict=True)):
            blocks = []
            for _ in range(depth):
                mixer = TokenMixer(
                    dim,
                    heads,
                    expand_k=expand_k,
                    gate_rank=gate_rank,
                    gate_normalizer=gate_normalizer,
                    conv_act=conv_act,
                    out_act=out_act,
                    norm_eps=norm_eps,
                    share=0.5,
                    **dd,
                )
                norms = [nn.LayerNorm(dim, eps=1e-5, **dd) for _ in range(2)]
                hidden = swiglu_hidden(dim, mlp_ratio, mlp_multiple)
                blocks.append(Block(mixer, norms, hidden, next(rates), None, **dd))
            downsample = Downsample(dims[number - 1], dim, **dd) if number else nn.Identity()
            stages.append(Stage(downsample, blocks))
        feature_info = [
            {"num_chs": dim, "reduction": patch_size << number, "module": f"layers.{number}"}
            for number, dim in enumerate(dims)
        ]
        norm = nn.LayerNorm(dims[-1], eps=1e-5, **dd)
        super().__init__(
            patch_embed, nn.Identity(), stages, feature_info, norm, num_classes, global_pool, drop_rate, **dd
        )

        self.in_chans, self.patch_size = in_chans, patch_size
        self.dims, self.depths, self.num_heads = tuple(dims), tuple(depths), tuple(num_heads)
        self.expand_k, self.gate_rank, self.gate_normalizer = expand_k, gate_rank, gate_normalizer
        self.mlp_ratio, self.mlp_multiple, self.drop_path_rate = mlp_ratio, mlp_multiple, drop_path_rate
        self.conv_act, self.out_act, self.norm_eps = conv_act, out_act, norm_eps

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.layers:
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters by depth (by stage if coarse), for rates that decay with it."""
        stage = [(r"^layers\.(\d+)", None)]
        block = [(r"^layers\.(\d+)\.downsample", (0,)), (r"^layers\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^patch_embed", "blocks": [*(stage if coarse else block), (r"^norm", (99999,))]}


def check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} is {size}", "It must be at least 1")


def drop_path_rates(last: float, depth: int) -> list[float]:
    """From 0 for the first block to ``last`` for the last."""
    return torch.linspace(0, last, depth, device="cpu").tolist()


def swiglu_hidden(dim: int, ratio: float, multiple: int) -> int:
    """Two thirds of an ungated perceptron's hidden channels, since there are three matrices; rounded up."""
    return math.ceil(int(dim * ratio * 2 / 3) / multiple) * multiple


RENAMES = (  # official names, of ViG and of ViG-H in both its ages, in the order that they are applied
    (r"^patch_embed\.(?:proj\.0|0|proj(?=\.(?:weight|bias)))\.", "patch_embed.conv1."),
    (r"^patch_embed\.(?:proj\.1|2|norm)\.", "patch_embed.norm1."),
    (r"^patch_embed\.(?:proj\.3|5)\.", "patch_embed.conv2."),
    (r"^patch_embed\.(?:proj\.4|7)\.", "patch_embed.norm2."),
    (r"^pos_embed$", "pos_embed.weight"),
    (r"^layers\.(\d+)\.downsample\.1\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.conv."),
    (r"^layers\.(\d+)\.downsample\.3\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.norm."),
    (r"(\.blocks\.\d+)\.(?:norm|ln_1)\.", r"\1.norm1."),
    (r"^blocks\.", "layers."),
    (r"\.attn_norm\.", ".norm1."),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.(?:attn|op|self_attention)\.", ".mixer."),
    (r"\.mixer\.in_proj\.0\.", ".mixer.dwconv."),
    (r"\.mixer\.(qkv_proj|gk_proj)\.", r".mixer.attention.\1."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.gamma([12])$", r".ls\1.gamma"),
    (r"^classifier\.norm\.", "norm."),
    (r"^(?:classifier\.)?head\.", "head.fc."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Entries of an official checkpoint under our names, with positions resized to the model's grid."""
    state = rename_official(state_dict)
    positions, ours = state.get("pos_embed.weight"), getattr(model, "pos_embed", None)
    if isinstance(ours, PositionEmbed) and positions is not None and positions.shape != ours.weight.shape:
        side = math.isqrt(positions.shape[1])  # what was not made for square images fails to load
        if side * side == positions.shape[1]:
            state["pos_embed.weight"] = resize_positions(positions, (side, side), *ours.grid_size)
    return state


def rename_official(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Entries of an official checkpoint under our names; a state dict of ours passes.

    Wrappers (``model``, ``state_dict``, ``model_ema``) and prefixes (``module.``, ``backbone.``) are taken off, and
    matrices that were stored as 1x1 convolutions reshaped.
    """
    for wrapper in ("model", "state_dict", "model_ema"):
        state_dict = state_dict.get(wrapper, state_dict)
    state = {re.sub(r"^(?:module\.|backbone\.)+", "", name): value for name, value in state_dict.items()}
    if "patch_embed.conv1.weight" not in state:
        for pattern, ours in RENAMES:
            state = {re.sub(pattern, ours, name): value for name, value in state.items()}
    for name, value in state.items():
        if value.ndim == 4 and value.shape[2:] == (1, 1):
            state[name] = value.flatten(1)
    return state


def _cfg(**fields: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.conv1",
        "classifier": "head.fc",
        "license": "mit",
        "origin_url": "https://github.com/hustvl/ViG",
        "paper_name": "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention",
        "paper_ids": "arXiv:2405.18425",
        **fields,
    }


_cards: dict[str, Any] = {f"vig_{size}.in1k": _cfg(pool_size=(14, 14)) for size in ("tiny", "small", "base")}
_cards |= {f"vig_h_{size}.in1k": _cfg(pool_size=(7, 7)) for size in ("tiny", "small", "base")}
default_cfgs = generate_default_cfgs(_cards)


def _create(cls: type[Backbone], variant: str, pretrained: bool, given: dict[str, Any], **sizes: Any) -> nn.Module:
    feature_cfg = {"out_indices": 3 if cls is ViG else (0, 1, 2, 3), "feature_cls": "getter"}
    arguments = sizes | given
    return build_model_with_cfg(
        cls, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=feature_cfg, **arguments
    )


@register_model
def vig_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    sizes = {"embed_dim": 192, "num_heads": 3, "conv_act": True, "out_act": True}
    return _create(ViG, "vig_tiny", pretrained, kwargs, **sizes)


@register_model
def vig_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _create(ViG, "vig_small", pretrained, kwargs, embed_dim=384, num_heads=6)


@register_model
def vig_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _create(ViG, "vig_base", pretrained, kwargs, embed_dim=768, num_heads=12)


@register_model
def vig_h_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _create(HierarchicalViG, "vig_h_tiny", pretrained, kwargs)


@register_model
def vig_h_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _create(HierarchicalViG, "vig_h_small", pretrained, kwargs, depths=(2, 2, 17, 2))


@register_model
def vig_h_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    sizes = {"dims": (128, 256, 512, 1024), "depths": (2, 2, 17, 2), "num_heads": (4, 8, 16, 32)}
    return _create(HierarchicalViG, "vig_h_base", pretrained, kwargs, **sizes)
