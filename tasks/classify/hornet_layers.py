"""The blocks of HorNet and their stages.

"HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions", Rao et al., NeurIPS 2022, arXiv
2207.14284, section 3.3.

Legend: B images, C channels, H W height and width. Annotations are evaluated here: ``torch.fx`` reads them.
"""

from typing import Any

import torch
from timm.layers import DropPath, LayerNorm, LayerNorm2d, Mlp
from timm.models import checkpoint_seq
from torch import Tensor, nn

from toolkit.blocks.conv import GnConv, are_plain, dense, only_infers_on_cpu, parameters, tiled


class HorNetBlock(nn.Module):
    """A gnConv that mixes pixels, then a perceptron that mixes channels; both scaled per channel and added.

    Arguments as those of ``HorNet``, for one stage; ``drop_path`` is the rate at which a sample skips a branch.
    """

    def __init__(
        self,
        dim: int,
        order: int,
        *,
        filter_size: tuple[int, int] | None = None,
        scale: float = 1 / 3,
        mlp_ratio: float = 4.0,
        layer_scale_init_value: float = 1e-6,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.norm1 = LayerNorm2d(dim, eps=1e-6, **factory)
        self.gnconv = GnConv(dim, order=order, filter_size=filter_size, scale=scale, **factory)
        self.norm2 = LayerNorm(dim, eps=1e-6, **factory)
        self.mlp = Mlp(dim, round(mlp_ratio * dim), **factory)
        scaled = layer_scale_init_value > 0
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale_init_value, **factory)) if scaled else None
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale_init_value, **factory)) if scaled else None
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        # TorchScript leaves out a block, but not the rest of a condition.
        if not torch.jit.is_scripting():  # noqa: SIM102
            if not self.training and only_infers_on_cpu(x) and self._is_plain():
                return self._infer(x)
        x = add(x, self.drop_path(self.gnconv(self.norm1(x))), self.gamma1)
        y = self.mlp(self.norm2(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return add(x, self.drop_path(y), self.gamma2)

    def _is_plain(self) -> bool:
        return (
            are_plain(self.gnconv, self.mlp, self.drop_path)
            and self.gnconv.is_plain()
            and are_plain(*self.mlp.children())
        )

    def _infer(self, x: Tensor) -> Tensor:
        """Once the neighbours have been mixed, each tile of tokens goes to the end of the block while in the cache."""
        tokens = x.permute(0, 2, 3, 1)
        y = torch.empty_like(tokens, memory_format=torch.contiguous_format)
        act: Any = self.mlp.act
        gamma1, gamma2 = (x.new_ones(1) if gamma is None else gamma for gamma in (self.gamma1, self.gamma2))
        for mixed, before, after in zip(self.gnconv.tiles(self.norm1(x)), tiled(tokens), tiled(y), strict=True):
            torch.addcmul(before, mixed, gamma1, out=after)
            hidden = dense(self.norm2(after), *parameters(self.mlp.fc1), gelu=act.approximate)
            after.addcmul_(dense(hidden, *parameters(self.mlp.fc2)), gamma2)
        return y.permute(0, 3, 1, 2)


def add(x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
    """``x + gamma * branch``, one factor per channel."""
    return x + branch if gamma is None else torch.addcmul(x, branch, gamma.view(-1, 1, 1))


class HorNetStage(nn.Module):
    """A row of blocks, after a convolution that halves the map if ``in_dim`` is given."""

    def __init__(self, in_dim: int | None, dim: int, blocks: list[HorNetBlock], device=None, dtype=None):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = nn.Sequential()
        if in_dim is not None:
            factory = {"device": device, "dtype": dtype}
            self.downsample.append(LayerNorm2d(in_dim, eps=1e-6, **factory))
            self.downsample.append(nn.Conv2d(in_dim, dim, 2, stride=2, **factory))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)
