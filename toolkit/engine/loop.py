"""The training loop and the evaluation loop. They see a task's steps and nothing behind them."""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from toolkit.engine import checkpoint
from toolkit.engine.config import TrainConfig
from toolkit.engine.distributed import add_over_processes, gather_objects
from toolkit.engine.log import Log
from toolkit.engine.optim import rate_of_update
from toolkit.engine.run import Run
from toolkit.errors import InputError, ToolkitError

DIVERGED = "Lower optim.lr or check the data"


class Task(Protocol):
    """What the loop needs of a task. A task without optimisers is evaluated without being trained."""

    model: nn.Module

    @property
    def config(self) -> TrainConfig: ...

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Optimisers of ``model``, made once before the first step."""

    def steps_per_epoch(self) -> int:
        """Updates in one epoch, over all processes together."""

    def train_batches(self, epoch: int, start: int, rank: int, world: int) -> Iterator[tuple[Any, float]]:
        """This process's pieces of every batch from update ``start`` on, ``config.accumulate`` pieces each.

        The order is a function of seed and epoch alone. With each piece comes its weight: the mean over processes
        and pieces of weight times mean loss is the mean loss of the whole batch.
        """

    def train_step(self, batch: Any) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Mean loss of a piece (None: the task did its own update), and further figures to log."""

    def eval_batches(self, split: str, rank: int, world: int) -> Iterator[Any]:
        """This process's share of a split; over all processes every sample comes exactly once."""

    def eval_step(self, batch: Any) -> dict[str, Tensor]:
        """Float64 sums over the samples of a batch, and their counts."""

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics from the sums over all batches."""

    def card(self) -> dict[str, Any]:
        """What ``config.json`` of a model directory says."""

    def extra_tensors(self) -> dict[str, Tensor]:
        """Tensors beside the weights that using the model needs."""


@dataclass
class Progress:
    """Where a run stands; stored in every checkpoint."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    best_step: int = 0
    bad_epochs: int = 0
    done: bool = False
    log_bytes: int = 0
    loss_sum: float | Tensor = 0.0
    loss_count: int = 0


@dataclass
class Interrupts:
    """The first Ctrl-C asks for a stop after the current step, the second stops at once."""

    wanted: bool = False

    def _ask(self, *_: Any) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    @contextmanager
    def watched(self) -> Iterator[Interrupts]:
        try:
            before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: leave signals to their owner
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def fit(task: Task, run: Run, accelerator: Accelerator, log: Log) -> Progress:
    """Train a task in its run folder, from the start or from where its last checkpoint stands.

    Leaves the best weights in ``task.model`` and in ``checkpoints/best``.

    Raises:
        KeyboardInterrupt: after a Ctrl-C, once the state is saved.
        ToolkitError: the loss is not finite any more.
    """
    trainer = Trainer(task, run, accelerator, log)
    with Interrupts().watched() as interrupts:
        while not trainer.progress.done:
            trainer.train_epoch(interrupts)
            trainer.validate()
            if trainer.agree(interrupts.wanted, save=False, at_log=True)[0]:
                raise KeyboardInterrupt
    trainer.close()
    return trainer.progress


class Trainer:
    """One task being trained: its optimisers, where it stands, and where it writes."""

    def __init__(self, task: Task, run: Run, accelerator: Accelerator, log: Log):
        self.task, self.run, self.accelerator, self.log = task, run, accelerator, log
        self.config, self.progress, self.lr = task.config, Progress(), 0.0
        self.optimizers = list(task.optimizers())
        if not self.optimizers:
            self.progress.done = True
            self.save("best")
            return
        task.model, *self.optimizers = accelerator.prepare(task.model, *self.optimizers)
        # accelerate's wrapper is needed with a gradient scaler only; it looks for optional packages at every call.
        bare = [getattr(wrapper, "optimizer") for wrapper in self.optimizers]  # noqa: B009
        self.stepping = bare if accelerator.scaler is None else self.optimizers
        self.averaged: AveragedModel | None = None
        if (decay := self.config.optim.ema) is not None:
            average = get_ema_multi_avg_fn(decay)
            self.averaged = AveragedModel(accelerator.unwrap_model(task.model), multi_avg_fn=average, use_buffers=True)
        if folder := checkpoint.existing(run.last):
            self.restore(folder)
            log.say(f"continuing after step {self.progress.step}, in epoch {self.progress.epoch + 1}")
        elif accelerator.is_main_process:
            run.cut_log(0)  # of a run that died before its first checkpoint
        self.saved = time.monotonic()
        self.board: SummaryWriter | None = None
        if accelerator.is_main_process:
            self.board = SummaryWriter(str(run.folder / "tensorboard"), purge_step=self.progress.step + 1)

    def train_epoch(self, interrupts: Interrupts) -> None:
        """The updates of one epoch, or what is left of it."""
        config, progress, per_epoch = self.config, self.progress, self.task.steps_per_epoch()
        self.task.model.train()
        with self.log.progress(f"epoch {progress.epoch + 1}/{config.epochs}", per_epoch) as bar:
            for loss in self.updates():
                progress.batch, progress.step = progress.batch + 1, progress.step + 1
                progress.loss_sum, progress.loss_count = progress.loss_sum + loss, progress.loss_count + 1
                full = progress.step == config.max_steps
                at_log = progress.step % config.log_every == 0 or progress.batch == per_epoch or full
                if at_log:
                    bar.at(progress.batch, f"loss {self.log_loss():.4f}")
                if full or progress.batch == per_epoch:
                    return
                overdue = time.monotonic() - self.saved >= 60 * config.checkpoint_minutes
                stop, save = self.agree(interrupts.wanted, overdue, at_log)
                if stop or save:
                    self.save("last")
                if stop:
                    raise KeyboardInterrupt

    def updates(self) -> Iterator[Tensor]:
        """One update per batch; yields the mean loss over this process's pieces of it."""
        task, accelerator, progress = self.task, self.accelerator, self.progress
        pieces = task.train_batches(
            progress.epoch, progress.batch, accelerator.process_index, accelerator.num_processes
        )
        total: Tensor | float = 0.0
        for number, (batch, weight) in enumerate(pieces, start=1):
            with accelerator.accumulate(task.model):
                loss, _ = task.train_step(batch)
                if loss is not None:
                    accelerator.backward(loss if weight == 1.0 else loss * weight)
                    total = total + loss.detach().double() * (weight / self.config.accumulate)
                    if accelerator.sync_gradients:
                        self.step()
            if number % self.config.accumulate == 0:
                yield torch.as_tensor(total)
                total = 0.0

    def step(self) -> None:
        """One update of the weights at the rate of its place in the run."""
        optim, progress = self.config.optim, self.progress
        done = progress.batch / self.task.steps_per_epoch()
        self.lr = rate_of_update(optim, progress.epoch, done, self.config.epochs)
        for optimizer in self.stepping:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * group.get("lr_scale", 1.0)
        if optim.clip is not None:
            self.accelerator.clip_grad_norm_(self.task.model.parameters(), optim.clip)
        for optimizer in self.stepping:
            optimizer.step()
            optimizer.zero_grad()
        if self.averaged is not None:
            self.averaged.update_parameters(self.accelerator.unwrap_model(self.task.model))

    @contextmanager
    def counting_model(self) -> Iterator[None]:
        """Inside, ``task.model`` is the one that is measured and kept: the one of averaged weights, if there is one."""
        trained = self.task.model
        if self.averaged is not None:
            self.task.model = self.averaged.module
        try:
            yield
        finally:
            self.task.model = trained

    def validate(self) -> None:
        """Validation metrics, early stopping and both checkpoints at the end of an epoch."""
        config, progress = self.config, self.progress
        with self.counting_model():
            values = evaluate(self.task, "val", self.accelerator)
        if config.monitor not in values:
            raise InputError(f"monitor={config.monitor!r} is no validation metric", f"There are {', '.join(values)}")
        value = values[config.monitor]
        if not math.isfinite(value):
            raise ToolkitError(f"validation {config.monitor} is {value} after step {progress.step}", DIVERGED)
        signed = value if config.direction == "min" else -value
        better = progress.best is None or signed <= progress.best  # an equal value counts as better
        if better:
            progress.best, progress.best_step, progress.bad_epochs = signed, progress.step, 0
        else:
            progress.bad_epochs += 1
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.done = (
            progress.epoch == config.epochs
            or progress.bad_epochs == config.patience
            or progress.step == config.max_steps
        )
        if self.board:
            self.run.log_metrics({"step": progress.step, "epoch": progress.epoch, "split": "val", **values})
            for name, number in values.items():
                self.board.add_scalar(f"val/{name}", number, progress.step)
        mark = " (best)" if better else ""
        self.log.say(f"epoch {progress.epoch}/{config.epochs}: validation {config.monitor} {value:.4f}{mark}")
        if better:
            with self.counting_model():
                self.save("best")
        self.save("last")

    def log_loss(self) -> float:
        """Log the mean training loss since the last such line, over all processes."""
        progress = self.progress
        means = gather_objects(float(progress.loss_sum) / progress.loss_count, self.accelerator)
        mean = sum(means) / len(means)
        progress.loss_sum, progress.loss_count = 0.0, 0
        if self.board:
            row = {
                "step": progress.step,
                "epoch": progress.epoch + 1,
                "split": "train",
                "loss": mean,
                "lr": self.lr,
            }
            self.run.log_metrics(row)
            self.board.add_scalar("train/loss", mean, progress.step)
            self.board.add_scalar("train/lr", self.lr, progress.step)
        if not math.isfinite(mean):
            raise ToolkitError(f"the training loss is {mean} at step {progress.step}", DIVERGED)
        return mean

    def agree(self, stop: bool, save: bool, at_log: bool) -> tuple[bool, bool]:
        """Whether to stop or save now: saving is collective, so processes ask each other, and only when they log."""
        if self.accelerator.num_processes == 1:
            return stop, save
        wishes = gather_objects((stop, save), self.accelerator) if at_log else []
        return any(stop for stop, _ in wishes), any(save for _, save in wishes)

    def save(self, name: str) -> None:
        """Write ``checkpoints/<name>``; ``best`` goes without the training state."""
        task, accelerator, state = self.task, self.accelerator, None
        if name == "last":
            random_states = gather_objects(_random_state(), accelerator)
            progress = replace(self.progress, loss_sum=float(self.progress.loss_sum), log_bytes=self.run.logged())
            state = {
                "progress": asdict(progress),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
                "random": random_states,
                "averaged": self.averaged.state_dict() if self.averaged else {},
            }
            self.saved = time.monotonic()
        if accelerator.is_main_process:
            with plain_model(task, accelerator) as model:
                folder = self.run.folder / "checkpoints" / name
                checkpoint.save(folder, model.state_dict(), task.card(), task.extra_tensors(), state)
        accelerator.wait_for_everyone()

    def restore(self, folder: Path) -> None:
        """Put everything back to where the last checkpoint stands."""
        accelerator, state = self.accelerator, checkpoint.read_state(folder)
        if len(state["random"]) != accelerator.num_processes:
            raise InputError(
                f"the run was started on {len(state['random'])} processes, now there are {accelerator.num_processes}"
            )
        weights = checkpoint.read_tensors(folder / checkpoint.MODEL)
        checkpoint.load_strictly(accelerator.unwrap_model(self.task.model), weights, str(folder))
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        self.progress = Progress(**state["progress"])
        _set_random_state(state["random"][accelerator.process_index])
        if accelerator.is_main_process:
            self.run.cut_log(self.progress.log_bytes)

    def close(self) -> None:
        """Leave the best weights in the task's plain model."""
        self.task.model = self.accelerator.unwrap_model(self.task.model)
        if self.optimizers:
            self.task.model.load_state_dict(checkpoint.read_tensors(self.run.best / checkpoint.MODEL))
            if self.board:
                self.board.close()


@contextmanager
def plain_model(task: Task, accelerator: Accelerator) -> Iterator[nn.Module]:
    """Inside, ``task.model`` is the module itself, not its wrapper for several processes."""
    wrapped, task.model = task.model, accelerator.unwrap_model(task.model)
    try:
        yield task.model
    finally:
        task.model = wrapped


def save_model(task: Task, run: Run) -> None:
    """Write ``checkpoints/best`` with all that the task knows after training."""
    checkpoint.save(run.best, task.model.state_dict(), task.card(), task.extra_tensors())


def evaluate(task: Task, split: str, accelerator: Accelerator) -> dict[str, float]:
    """Metrics of a split, from sums and counts: independent of batch size and number of processes."""
    return task.metrics(evaluation_sums(task, split, accelerator))


@torch.inference_mode()
def evaluation_sums(task: Task, split: str, accelerator: Accelerator) -> dict[str, Tensor]:
    """The sums over a split behind its metrics."""
    totals: dict[str, Tensor] = {}
    with plain_model(task, accelerator) as model:
        model.eval()
        for batch in task.eval_batches(split, accelerator.process_index, accelerator.num_processes):
            for name, value in task.eval_step(batch).items():
                totals[name] = totals[name] + value if name in totals else value
    return add_over_processes(totals, accelerator)


def _random_state() -> dict[str, Any]:
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
