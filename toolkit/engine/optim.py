"""Optimizers by name, and the learning-rate schedules of the forecasting literature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from toolkit.engine.config import OptimConfig
from toolkit.errors import InputError, nearest

FLAT_LIMIT = 4_000_000  # parameters of a group; beyond, the arithmetic of a step hides its overhead


class FlatGroup(NamedTuple):
    """The tensors of a parameter group as slices of one tensor each."""

    values: Tensor
    grads: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: Tensor  # one number per parameter, all equal
    addresses: list[int]  # where each parameter's slice of ``values`` starts
    grad_views: list[Tensor]


class FlatAdam(torch.optim.Adam):
    """Adam (or AdamW) that updates small float32 CPU models as one tensor.

    A model of forty small tensors spends more time on their bookkeeping than on the update. On its first step this
    class moves parameters, gradients and moments of a group into one tensor each and leaves views behind: one fused
    update, and ``zero_grad`` is one fill. Everything else is ``torch.optim.Adam`` with ``fused=True``: its state dict
    can be exchanged with it, and other devices, types and sizes take its step.

    A parameter without a gradient counts as one whose gradient is zero.
    """

    def __init__(self, params: Iterable[Any], **options: Any):
        super().__init__(params, fused=True, **options)
        self._flat: dict[int, FlatGroup] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._flat = {}  # loading a state replaces the moments: gather them again

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        flat_groups = [self._flat_group(index, group) for index, group in enumerate(self.param_groups)]
        if None in flat_groups or getattr(self, "found_inf", None) is not None:  # the latter: a gradient scaler
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for flat, group in zip(flat_groups, self.param_groups, strict=True):
                step_flat(cast(FlatGroup, flat), group)
        return loss

    def _flat_group(self, index: int, group: dict[str, Any]) -> FlatGroup | None:
        flat = self._flat.get(index)
        if flat is None or flat.addresses != [parameter.data_ptr() for parameter in group["params"]]:
            if not is_small(group["params"]):
                self._flat.pop(index, None)
                return None
            flat = self._flat[index] = self._flatten(group["params"])  # the first step, or the model was moved
        return flat

    @torch.no_grad()
    def _flatten(self, parameters: list[nn.Parameter]) -> FlatGroup:
        sizes = [parameter.numel() for parameter in parameters]
        states = [self.state[parameter] for parameter in parameters]

        def gather(name: str) -> Tensor:
            tensors = [s[name] if s else torch.zeros_like(p) for s, p in zip(states, parameters, strict=True)]
            return torch.cat([tensor.reshape(-1) for tensor in tensors])

        def views(flat: Tensor) -> list[Tensor]:
            return [view.view(p.shape) for view, p in zip(flat.split(sizes), parameters, strict=True)]

        values = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        exp_avg, exp_avg_sq = gather("exp_avg"), gather("exp_avg_sq")
        steps = torch.zeros(len(parameters)).fill_(max(float(state["step"]) if state else 0.0 for state in states))
        moments = zip(views(values), steps, views(exp_avg), views(exp_avg_sq), strict=True)
        for parameter, (value, step, first, second) in zip(parameters, moments, strict=True):
            parameter.data = value
            self.state[parameter] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        grads = torch.zeros_like(values)
        addresses = [parameter.data_ptr() for parameter in parameters]
        return FlatGroup(values, grads, exp_avg, exp_avg_sq, steps, addresses, views(grads))

    def zero_grad(self, set_to_none: bool = True) -> None:
        for index, group in enumerate(self.param_groups):
            flat = self._flat.get(index)
            if flat is None:
                for parameter in group["params"]:
                    parameter.grad = None
            else:
                flat.grads.zero_()
                attach_grads(group["params"], flat, keep=False)


def step_flat(flat: FlatGroup, group: dict[str, Any]) -> None:
    attach_grads(group["params"], flat, keep=True)
    adam(
        [flat.values],
        [flat.grads],
        [flat.exp_avg],
        [flat.exp_avg_sq],
        [],
        [flat.steps[0]],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
        decoupled_weight_decay=group["decoupled_weight_decay"],
    )
    flat.steps[1:].add_(1)


def attach_grads(parameters: list[nn.Parameter], flat: FlatGroup, keep: bool) -> None:
    """Make each ``.grad`` its slice again, if somebody (``model.zero_grad``, a wrapper) has replaced it."""
    for parameter, view in zip(parameters, flat.grad_views, strict=True):
        grad = parameter.grad
        if grad is not view:
            if keep:
                view.zero_() if grad is None else view.copy_(grad)
            parameter.grad = view


def is_small(parameters: list[nn.Parameter]) -> bool:
    """Whether one flat tensor can stand for these parameters and is worth it."""
    return 0 < sum(p.numel() for p in parameters) <= FLAT_LIMIT and all(
        type(p) is nn.Parameter and p.is_cpu and p.dtype is torch.float32 for p in parameters
    )


def build_optimizer(
    parameters: nn.Module | Iterable[Any],
    name: str,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Build an optimizer.

    Args:
        parameters: a module, its parameters, or parameter groups.
        name: ``adam`` (weight decay added to the gradient) or ``adamw`` (decoupled).
        lr: learning rate.
        weight_decay: see ``name``.
        betas: decay rates of the first and the second moment.
        eps: added to the square root of the second moment.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"unknown optimizer {name!r}", nearest(name, OPTIMIZERS) or f"Known: {', '.join(OPTIMIZERS)}")
    if isinstance(parameters, nn.Module):
        parameters = (parameter for parameter in parameters.parameters() if parameter.requires_grad)
    options = OPTIMIZERS[name]
    return FlatAdam(parameters, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, **options)


OPTIMIZERS: dict[str, dict[str, Any]] = {"adam": {}, "adamw": {"decoupled_weight_decay": True}}


def rate_of_update(optim: OptimConfig, epoch: int, fraction: float, epochs: int) -> float:
    """Learning rate of an update.

    ``warmup_cosine`` rises in a line from 0 to ``lr`` over ``warmup`` epochs, and falls along half a cosine to
    ``min_lr`` at the end of the last epoch; the other schedules keep one rate for an epoch (``learning_rate``).

    Args:
        optim: schedule, ``lr``, ``warmup``, ``min_lr``.
        epoch: whole epochs before the update.
        fraction: part of its epoch that is done.
        epochs: number of epochs of the run, the warm-up included.
    """
    if optim.schedule != "warmup_cosine":
        return learning_rate(optim.schedule, optim.lr, epoch + 1, epochs)
    passed = epoch + fraction
    if passed < optim.warmup:
        return optim.lr * passed / optim.warmup
    done = (passed - optim.warmup) / (epochs - optim.warmup)
    return optim.min_lr + (optim.lr - optim.min_lr) / 2 * (1 + math.cos(math.pi * done))


def learning_rate(name: str, lr: float, epoch: int, epochs: int) -> float:
    """Learning rate of a whole epoch.

    The official code changes the rate *after* an epoch; here that is the rate of the next one, so that ``halving`` runs
    epochs 1 and 2 at ``lr`` and epoch 3 at ``lr / 2``.

    Args:
        name: ``constant``; ``halving``: half of it each epoch from the third on (official name ``type1``); ``decay``:
            0.9 of it each epoch from the third on (``type4`` of TPGN); ``table``: fixed rates from given epochs on,
            whatever ``lr`` (``type2``); ``plateau_decay``: 0.9 of it each epoch from the fifth on (``type3``);
            ``cosine``: from ``lr`` at the first epoch towards 0 after the last.
        lr: initial rate.
        epoch: counted from 1.
        epochs: number of epochs of the run.
    """
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}", nearest(name, SCHEDULES) or f"Known: {', '.join(SCHEDULES)}")
    return SCHEDULES[name](lr, epoch, epochs)


RATE_AFTER_EPOCH = {2: 5e-5, 4: 1e-5, 6: 5e-6, 8: 1e-6, 10: 5e-7, 15: 1e-7, 20: 5e-8}


def table_rate(lr: float, epoch: int, epochs: int) -> float:
    passed = [rate for after, rate in RATE_AFTER_EPOCH.items() if after < epoch]
    return passed[-1] if passed else lr


SCHEDULES: dict[str, Callable[[float, int, int], float]] = {
    "constant": lambda lr, epoch, epochs: lr,
    "halving": lambda lr, epoch, epochs: lr * 0.5 ** max(epoch - 2, 0),
    "decay": lambda lr, epoch, epochs: lr * 0.9 ** max(epoch - 2, 0),
    "table": table_rate,
    "plateau_decay": lambda lr, epoch, epochs: lr * 0.9 ** max(epoch - 4, 0),
    "cosine": lambda lr, epoch, epochs: lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs)),
}
