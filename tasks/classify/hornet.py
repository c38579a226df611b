"""HorNet: backbones of recursive gated convolutions, with 7x7 kernels or global-local filters.

"HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions", Rao et al., NeurIPS 2022, arXiv
2207.14284, sections 3.1 to 3.3. Names of modules are timm's where the paper has none.

Legend: B images, C channels, H W height and width. Annotations are evaluated here: ``torch.fx`` reads them.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.layers import LayerNorm2d, NormMlpClassifierHead, get_device_dtype, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from toolkit.blocks.conv import resize_spectrum
from toolkit.errors import InputError
from toolkit.tasks.classify.hornet_layers import HorNetBlock, HorNetStage

__all__ = ["HorNet"]  # timm adds the entry points


class HorNet(nn.Module):
    """Classify an image of any size, or describe it by one map per stage.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: ``avg``, or empty for a classifier at every pixel of the last map.
        patch_size: stride of the stem; 4 as published, less for small images.
        depths: blocks of each stage.
        dims: channels of each stage.
        orders: of the gnConvs of each stage.
        filter_sizes: half spectrum of the global-local filters of each stage, None for 7x7 kernels. Other maps than
            those of that size are served by resizing the filters.
        scale: of the gnConvs.
        mlp_ratio: hidden channels of the perceptrons per channel.
        layer_scale_init_value: first value of the branches' scales; 0 or less for none.
        level_norms: a backbone for dense prediction, without head: each stage's map passes a LayerNorm of its own
            (``forward_intermediates(norm=True)``, and ``features_only=True``).
        drop_rate: of the features before the classifier.
        drop_path_rate: of the last block's branches; it rises linearly from 0 in the first.
        device, dtype: of the parameters.

    Raises:
        InputError: arguments that contradict each other.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        patch_size: int = 4,
        depths: tuple[int, ...] = (2, 3, 18, 2),
        dims: tuple[int, ...] = (64, 128, 256, 512),
        orders: tuple[int, ...] = (2, 3, 4, 5),
        filter_sizes: tuple[tuple[int, int] | None, ...] | None = None,
        scale: float = 1 / 3,
        mlp_ratio: float = 4.0,
        layer_scale_init_value: float = 1e-6,
        level_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        for name, values in {"dims": dims, "orders": orders, "filter_sizes": filter_sizes}.items():
            if values is not None and len(values) != len(depths):
                raise InputError(f"{name} {values} are for {len(values)} stages, depths for {len(depths)}")
        for name, rate in {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}.items():
            if not 0 <= rate < 1:
                raise InputError(f"{name} is {rate}", "It must be at least 0 and below 1")
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.patch_size, self.depths, self.dims, self.orders = patch_size, depths, dims, orders
        self.filter_sizes, self.scale, self.mlp_ratio = filter_sizes, scale, mlp_ratio
        self.layer_scale_init_value, self.level_norms = layer_scale_init_value, level_norms
        self.drop_rate, self.drop_path_rate = drop_rate, drop_path_rate
        self.device, self.dtype = None, None  # where the parameters are by now, they themselves tell

        factory = {"device": device, "dtype": dtype}
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, dims[0], patch_size, stride=patch_size, **factory),
            LayerNorm2d(dims[0], eps=1e-6, **factory),
        )
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.stages = nn.Sequential()
        self.feature_info = []
        for i, (depth, dim, order) in enumerate(zip(depths, dims, orders, strict=True)):
            blocks = [
                HorNetBlock(
                    dim,
                    order,
                    filter_size=filter_sizes[i] if filter_sizes else None,
                    scale=scale,
                    mlp_ratio=mlp_ratio,
                    layer_scale_init_value=layer_scale_init_value,
                    drop_path=next(rates),
                    **factory,
                )
                for _ in range(depth)
            ]
            self.stages.append(HorNetStage(dims[i - 1] if i else None, dim, blocks, **factory))
            self.feature_info.append({"num_chs": dim, "reduction": patch_size << i, "module": f"stages.{i}"})
        self.norms = nn.ModuleList(LayerNorm2d(dim, eps=1e-6, **factory) for dim in dims if level_norms)
        self.num_features = self.head_hidden_size = dims[-1]
        self.head = NormMlpClassifierHead(
            dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, norm_layer=LayerNorm2d, **factory
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if level_norms:
            self._remove_head()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W]`` to logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W]`` to the last stage's map ``[B, num_features, H / 32, W / 32]``."""
        return self.stages(self.stem(x.contiguous(memory_format=torch.channels_last)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify the last map; ``pre_logits`` stops before the classifier."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of chosen stages.

        Args:
            x: image ``[B, in_chans, H, W]``.
            indices: of stages; the last so many for a number, all for None.
            norm: pass the maps through the level norms, if the model has them.
            stop_early: leave out the stages after the last chosen one.
            output_fmt: only ``NCHW``.
            intermediates_only: leave out the last map.

        Returns:
            The last map and a list of the chosen ones ``[B, C, H, W]``, or the list alone.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt is {output_fmt!r}", "HorNet has NCHW")
        chosen, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in chosen:
                maps.append(self.norms[i](x) if norm and self.norms else x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what ``forward_intermediates`` does not need for these stages; returns their indices.

        Args:
            indices: as of ``forward_intermediates``.
            prune_norm: remove the level norms.
            prune_head: remove the head. Without the last stage it goes anyway.
        """
        chosen, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        for i in range(len(self.norms)):
            if prune_norm or i not in chosen:
                self.norms[i] = nn.Identity()
        self.num_features = self.dims[last]
        if prune_head or shortened:
            self._remove_head()
        return chosen

    def _remove_head(self) -> None:
        self.reset_classifier(0, "")
        self.head.norm = nn.Identity()
        self.head_hidden_size = self.num_features

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head.reset(num_classes, global_pool, **get_device_dtype(self))

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each block's activations again in the backward pass instead of keeping them."""
        for stage in self.modules():
            if isinstance(stage, HorNetStage):
                stage.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()  # beside what has one axis, as always: global filters do decay

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False, blockwise: bool = False) -> dict[str, Any]:
        """Groups of parameters for a learning rate that decays with the depth.

        By default they are those of the published fine-tuning: the stem, stage 1, stage 2, the third stage in up to
        nine groups of two blocks, the last one as long as need be, stage 4, and the head.

        Args:
            coarse: those of the published dense prediction: all that changes the resolution, then each stage.
            blockwise: each block is a group.
        """
        if coarse:
            return {"stem": [(r"^stem", None), (r"^stages\.\d+\.downsample", None)], "blocks": r"^stages\.(\d+)"}
        if blockwise:
            rows = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        else:
            rows = [(r"^stages\.0\.", (1,)), (r"^stages\.1\.", (2,)), (r"^stages\.2\.downsample", (3,))]
            third = range(self.depths[2] if len(self.depths) > 2 else 0)
            rows += [(rf"^stages\.2\.blocks\.{j}\.", (min(3 + j // 2, 11),)) for j in third]
            rows.append((r"^stages\.3\.", (12,)))
        return {"stem": r"^stem", "blocks": rows}


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Entries of an official checkpoint under the names of this file; files of ours pass.

    Wrappers (``model``, ``state_dict``, ``model_ema``, ``module``) and prefixes (``module.``, ``backbone.``) are taken
    off; of a detector or segmenter only the backbone is kept. Global filters are resized to the model's.
    """
    for wrapper in ("model", "state_dict", "model_ema", "module"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
            break
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    backbone = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    state = backbone or state
    if "stem.0.weight" not in state:
        state = {rename(key): value for key, value in state.items()}

    own = model.state_dict()
    for key, value in state.items():
        if key.endswith(".complex_weight") and key in own:
            state[key] = resize_spectrum(value, *own[key].shape[1:3])
    return state


def rename(key: str) -> str:
    """Our name of an entry of the official layout."""
    for pattern, ours in RENAMES:
        key = re.sub(pattern, ours, key)
    return key


RENAMES = (
    (r"^downsample_layers\.0\.", r"stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"^norm(\d)\.", r"norms.\1."),
    (r"^norm\.", r"head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def _cfg(**changes: Any) -> dict[str, Any]:
    """As timm's defaults (224 pixels, ImageNet's mean and deviation, bicubic, a crop of 7/8) but for these."""
    return {
        "url": "",
        "min_input_size": (3, 32, 32),
        "pool_size": (7, 7),
        "first_conv": "stem.0",
        "classifier": "head.fc",
        "license": "mit",
        "origin_url": "https://github.com/raoyongming/HorNet",
        "paper_name": "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions",
        "paper_ids": "arXiv:2207.14284",
        **changes,
    }


AT_384 = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0, "crop_mode": "squash"}
IN22K = {"num_classes": 10459}  # at least so many: the published table of ImageNet-1K's rows ends with 10458
FILTERS_224 = (None, None, (14, 8), (7, 4))
FILTERS_384 = (None, None, (24, 13), (12, 7))

SIZES: dict[
    str, tuple[int, Any, str, dict[str, Any]]
] = {  # name: channels of the first stage, filters of each, weights, what they want beside the rest
    "hornet_tiny_7x7": (64, None, "in1k", {}),
    "hornet_tiny_gf": (64, FILTERS_224, "in1k", {}),
    "hornet_small_7x7": (96, None, "in1k", {}),
    "hornet_small_gf": (96, FILTERS_224, "in1k", {}),
    "hornet_base_7x7": (128, None, "in1k", {}),
    "hornet_base_gf": (128, FILTERS_224, "in1k", {}),
    "hornet_base_gf_img384": (128, FILTERS_384, "untrained", AT_384),
    "hornet_large_7x7": (192, None, "in22k", IN22K),
    "hornet_large_gf": (192, FILTERS_224, "in22k", IN22K),
    "hornet_large_gf_img384": (192, FILTERS_384, "in22k", IN22K | AT_384),
}
default_cfgs = generate_default_cfgs({f"{name}.{tag}": _cfg(**more) for name, (_, _, tag, more) in SIZES.items()})


def _entry_point(name: str) -> Callable[..., nn.Module]:
    width, filter_sizes, _, _ = SIZES[name]

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        features: dict[str, Any] = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
        if kwargs.get("level_norms"):
            features |= {"feature_cls": "getter", "norm": True}
        arguments: dict[str, Any] = {"dims": tuple(width << i for i in range(4)), "filter_sizes": filter_sizes} | kwargs
        return build_model_with_cfg(
            HorNet, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=features, **arguments
        )

    create.__name__ = create.__qualname__ = name
    return register_model(create)


for _name in SIZES:
    globals()[_name] = _entry_point(_name)

VARIANTS = {"hornet": "HorNet"}
