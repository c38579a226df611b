"""Several processes: the accelerator, and sums that do not depend on how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from toolkit.engine.config import TrainConfig
from toolkit.errors import InputError


def make_accelerator(config: TrainConfig, device: str = "auto") -> Accelerator:
    """Devices, precision, accumulation and processes as ``torchrun`` or ``accelerate launch`` set them up.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        InputError: the device is not there.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device != "auto" and not available.get(device, False):
        usable = ", ".join(name for name, there in available.items() if there)
        raise InputError(f"device {device!r} is not available", f"Available: {usable}")
    alone = not torch.distributed.is_initialized()
    AcceleratorState._reset_state(alone)  # one process may train several configurations, one after another
    GradientState._reset_state()
    return Accelerator(
        cpu=device == "cpu" or (device == "auto" and not available["cuda"] and not available["mps"]),
        mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
        gradient_accumulation_steps=config.accumulate,
    )


def leave_processes() -> None:
    """The orderly end of one process among several: nobody goes while another still waits for it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def add_over_processes(sums: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Sums of every process added up, on every process; one that had no batch may come with none.

    Args:
        sums: name to tensor of any shape, the same on all processes that have it.
    """
    total: dict[str, Tensor] = {}
    for part in gather_objects({name: value.cpu() for name, value in sums.items()}, accelerator):
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


def gather_objects(value: Any, accelerator: Accelerator) -> list[Any]:
    """One small object from every process, in order of rank."""
    if accelerator.num_processes == 1:
        return [value]
    gathered: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(gathered, value)
    return gathered
