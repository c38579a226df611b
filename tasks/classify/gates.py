"""Where the gates of a backbone stand open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.tasks.classify.vig_layers import TokenMixer


@contextmanager
def watching(model: nn.Module, maps: dict[str, Tensor]) -> Iterator[None]:
    """Inside, every forward writes each mixer's gate, its mean over channels ``[B, H, W]``, into ``maps``.

    ViG's gate weighs attention (1) against the local convolution (0); other backbones have no gate of this kind.
    """
    grids: dict[str, tuple[int, int]] = {}

    def note_grid(name: str, mixer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        grids[name] = (inputs[0].shape[1], inputs[0].shape[2])

    def note_gate(name: str, layer: nn.Module, inputs: Any, logits: Tensor) -> None:
        openness = torch.sigmoid(logits.detach().float()).mean(-1)
        maps[name] = openness.view(len(logits), *grids[name]).cpu()

    with ExitStack() as handles:
        for name, module in model.named_modules():
            if isinstance(module, TokenMixer):
                handles.enter_context(module.register_forward_pre_hook(partial(note_grid, name)))
                handles.enter_context(module.g_proj.register_forward_hook(partial(note_gate, name)))
        yield
