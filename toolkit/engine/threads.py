"""How many CPU threads a training uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from toolkit.engine.loop import Task

SMALL_STEP = 400_000_000  # floating-point operations of a forward pass; below, threads wait more than they work


@contextmanager
def cpu_threads(task: Task, device: torch.device) -> Iterator[None]:
    """Inside, a training on the CPU uses ``config.threads`` threads, or one if a step of the task is small.

    The rule counts operations and measures no time: the number of threads changes the last digits of a sum, and a run
    must be repeatable.
    """
    before = torch.get_num_threads()
    small = device.type == "cpu" and task.config.threads is None and forward_flops(task) < SMALL_STEP
    wanted = task.config.threads or (1 if small else before)
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def forward_flops(task: Task) -> int:
    """Floating-point operations of the forward pass of one batch (a multiply-add counts as two); draws nothing."""
    batch, _ = next(iter(task.train_batches(epoch=0, start=0, rank=0, world=1)))
    with torch.random.fork_rng(devices=[]), torch.no_grad(), FlopCounterMode(display=False) as counter:
        task.train_step(batch)
    return counter.get_total_flops()
