"""How far the gates of a model stand open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn

from toolkit.blocks.fusion import GatedFusion


@contextmanager
def watching(model: nn.Module, openness: dict[str, Tensor]) -> Iterator[None]:
    """Inside, every forward writes each gate's mean over channels, summed over the batch, (D,), into ``openness``.

    Args:
        model: its gated fusions work on variate tokens (B, D, dim).
    """
    with ExitStack() as handles:
        for name, module in model.named_modules():
            if isinstance(module, GatedFusion):
                handles.enter_context(module.register_forward_hook(partial(_note, name, openness)))
        yield


def _note(name: str, openness: dict[str, Tensor], fusion: GatedFusion, inputs: tuple[Tensor, ...], _: Tensor) -> None:
    openness[name] = fusion.gate(*inputs).mean(-1).double().sum(0).cpu()
