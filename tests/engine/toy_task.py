"""A task of a few numbers: linear regression with dropout, so that training draws random numbers."""

from __future__ import annotations

import torch
from torch import nn

from toolkit.data.loaders import epoch_batches, eval_batches
from toolkit.engine.config import TrainConfig


class Toy:
    def __init__(self, config: TrainConfig, samples: int = 40, dropout: float = 0.3):
        self.config = config
        draws = torch.Generator().manual_seed(1)
        self.x = torch.randn(samples, 5, generator=draws)
        self.y = self.x @ torch.arange(5.0)[:, None]
        torch.manual_seed(config.seeds[0])
        self.model: nn.Module = nn.Sequential(nn.Linear(5, 8), nn.Dropout(dropout), nn.Linear(8, 1))
        self.fail_at: int | None = None
        self.steps = 0

    def optimizers(self):
        return [torch.optim.Adam(self.model.parameters(), lr=self.config.optim.lr)]

    def steps_per_epoch(self):
        return -(-len(self.x) // self.config.batch_size)

    def train_batches(self, epoch, start, rank, world):
        pieces = self.config.accumulate
        streams = [
            epoch_batches(
                len(self.x),
                self.config.batch_size,
                seed=0,
                epoch=epoch,
                start=start,
                rank=rank * pieces + piece,
                world=world * pieces,
            )
            for piece in range(pieces)
        ]
        for together in zip(*streams, strict=True):
            for indices, weight in together:
                yield (self.x[indices], self.y[indices]), weight

    def train_step(self, batch):
        self.steps += 1
        if self.steps == self.fail_at:
            raise KeyboardInterrupt
        return (self.model(batch[0]) - batch[1]).square().mean(), {}

    def eval_batches(self, split, rank, world):
        for indices in eval_batches(len(self.x), 7, rank=rank, world=world):
            yield self.x[indices], self.y[indices]

    def eval_step(self, batch):
        error = (self.model(batch[0]) - batch[1]).double().square()
        return {"error": error.sum(), "count": torch.tensor(float(len(error)), dtype=torch.float64)}

    def metrics(self, sums):
        return {"loss": (sums["error"] / sums["count"]).item()}

    def card(self):
        return {"architecture": "toy"}

    def extra_tensors(self):
        return {}
