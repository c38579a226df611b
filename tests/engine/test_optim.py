"""Optimizers and schedules: the flat Adam is Adam."""

from __future__ import annotations

import copy
import io
import math
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from toolkit.engine.config import OptimConfig
from toolkit.engine.optim import build_optimizer, learning_rate, rate_of_update
from toolkit.errors import InputError

STOCK = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(5, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def same(a: nn.Module, b: nn.Module) -> None:
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_the_library(name: str, weight_decay: float) -> None:
    ours, theirs = network(), network()
    train(ours, build_optimizer(ours, name, 1e-2, weight_decay), 20)
    train(theirs, STOCK[name](theirs.parameters(), lr=1e-2, weight_decay=weight_decay), 20)
    same(ours, theirs)


def test_rate_can_change_and_groups_differ() -> None:
    models = network(), network()
    for model, build in zip(models, (lambda g: build_optimizer(g, "adam", 1e-2), torch.optim.Adam), strict=True):
        groups = [
            {"params": model[0].parameters(), "lr": 1e-2},
            {"params": model[2].parameters(), "lr": 1e-3},
        ]
        optimizer = build(groups)
        train(model, optimizer, 3)
        optimizer.param_groups[0]["lr"] = 5e-3
        train(model, optimizer, 3, 3)
    same(*models)


def test_resume_is_exact_and_the_state_is_plain() -> None:
    unbroken, model = network(), network()
    train(unbroken, build_optimizer(unbroken, "adam", 1e-2), 6)
    optimizer = build_optimizer(model, "adam", 1e-2)
    train(model, optimizer, 3)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)

    resumed = network()
    resumed.load_state_dict(stored["model"])
    optimizer = build_optimizer(resumed, "adam", 1e-2)
    optimizer.load_state_dict(stored["optimizer"])
    train(resumed, optimizer, 3, 3)
    assert all(torch.equal(x, y) for x, y in zip(resumed.parameters(), unbroken.parameters(), strict=True))

    stock = torch.optim.Adam(resumed.parameters())
    stock.load_state_dict(stored["optimizer"])
    assert stock.state_dict()["state"][0]["step"] == 3


def test_gradients_set_to_none_or_replaced() -> None:
    ours, theirs = network(), network()
    pairs = (
        (ours, build_optimizer(ours, "adam", 1e-2)),
        (theirs, torch.optim.Adam(theirs.parameters(), lr=1e-2)),
    )
    for model, optimizer in pairs:
        for step in range(6):
            model(torch.full((2, 4), step / 6.0)).square().mean().backward()
            if step % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                for parameter in model.parameters():
                    parameter.grad = parameter.grad.clone()
            optimizer.step()
            model.zero_grad() if step % 3 else optimizer.zero_grad()
    same(ours, theirs)


def test_gradients_accumulate() -> None:
    ours, theirs = network(), network()
    pairs = (
        (ours, build_optimizer(ours, "adam", 1e-2)),
        (theirs, torch.optim.Adam(theirs.parameters(), lr=1e-2)),
    )
    for model, optimizer in pairs:
        for step in range(9):
            model(torch.full((2, 4), step / 9.0)).square().mean().backward()
            if step % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    same(ours, theirs)


def test_moved_copied_and_frozen_models() -> None:
    model, stock = network(), network()
    for module in (model, stock):
        module[0].bias.requires_grad_(False)
    optimizer, reference = build_optimizer(model, "adam", 1e-2), torch.optim.Adam(stock.parameters(), lr=1e-2)
    for step in range(4):
        train(model, optimizer, 1, step)
        train(stock, reference, 1, step)
        model.double().float()  # new storage for every parameter, as a move to another device and back
    same(model, stock)
    train(model.double(), optimizer, 0)

    twin = copy.deepcopy(model.float())
    train(model, optimizer, 1)
    assert not torch.equal(twin[0].weight, model[0].weight)


def test_other_types_take_the_library_step() -> None:
    model = network().double()
    optimizer = build_optimizer(model, "adam", 1e-2)
    before = model[0].weight.clone()
    model(torch.ones(1, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert not torch.equal(model[0].weight, before)
    assert model[0].weight.grad is None


def test_closure() -> None:
    model = network()
    optimizer = build_optimizer(model, "adam", 1e-2)

    def closure() -> torch.Tensor:
        loss = model(torch.ones(1, 4)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)


def test_weights_save_as_safetensors(tmp_path: Path) -> None:
    model = network()
    train(model, build_optimizer(model, "adam", 1e-2), 2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for name, value in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(value, model.state_dict()[name])


def test_under_accelerate() -> None:
    ours, theirs = network(), network()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(ours, build_optimizer(ours, "adam", 1e-2))
    for step in range(6):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.full((2, 4), step / 6.0)).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    stock = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for step in range(6):
        (theirs(torch.full((2, 4), step / 6.0)).square().mean() / 2).backward()
        if step % 2:
            stock.step()
            stock.zero_grad()
    same(ours, theirs)


def worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = network()
    for bucket_view in (False, True):
        parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=bucket_view)
        optimizer = build_optimizer(parallel, "adam", 1e-2)
        for step in range(4):
            parallel(torch.full((2, 4), step / 4.0 + rank)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # the interpreter's shutdown races with gloo's threads


def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, (port, str(tmp_path)), nprocs=2)
    alone = network()
    for _ in range(2):
        optimizer = torch.optim.Adam(alone.parameters(), lr=1e-2)
        for step in range(4):
            losses = [alone(torch.full((2, 4), step / 4.0 + rank)).square().mean() for rank in range(2)]
            (sum(losses) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(value, alone.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"unknown optimizer 'adma'. Did you mean 'adam'"):
        build_optimizer(network(), "adma", 1e-3)
    with pytest.raises(InputError, match=r"unknown schedule 'half'. Did you mean 'halving'"):
        learning_rate("half", 1e-3, 1, 10)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("halving", [1, 1, 0.5, 0.25, 0.125, 0.0625]),
        ("decay", [1, 1, 0.9, 0.81, 0.729, 0.6561]),
        ("table", [1, 1, 5e-5, 5e-5, 1e-5, 1e-5]),
        ("plateau_decay", [1, 1, 1, 1, 0.9, 0.81]),
        ("cosine", [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
    ],
)
def test_schedules(name: str, expected: list[float]) -> None:
    assert [learning_rate(name, 1.0, epoch, 6) for epoch in range(1, 7)] == pytest.approx(expected)


def test_warmup_cosine_changes_every_update() -> None:
    optim = OptimConfig(lr=1.0, schedule="warmup_cosine", warmup=2, min_lr=0.1)
    rates = [rate_of_update(optim, epoch, fraction, 6) for epoch in range(6) for fraction in (0.0, 0.5)]
    cosine = [0.1 + 0.45 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, *cosine])
    assert rate_of_update(OptimConfig(lr=1.0), 2, 0.9, 6) == learning_rate("halving", 1.0, 3, 6)
