"""Cost of a training step of Gateformer (ETTh1, 96 to 96, batch 8): the usual PyTorch loop against the toolkit's.

The usual loop: ``nn.TransformerEncoderLayer``, a DataLoader of per-item slices, ``torch.optim.Adam``. Ours: the
updates of ``toolkit train forecast`` with everything that belongs to them. Both start from the same weights and see the
same windows in the same order, in alternating blocks of one process with one thread; time is process time. The row
without dropout compares the losses; the row with dropout 0.1 is the claim.

    python benchmarks/forecast_step.py [--data ETTh1.csv] [--steps 1057] [--json step.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from toolkit.api import resolve
from toolkit.data.loaders import epoch_order
from toolkit.engine.distributed import make_accelerator
from toolkit.engine.log import Log
from toolkit.engine.loop import Trainer
from toolkit.engine.run import Run
from toolkit.engine.session import build
from toolkit.tasks.forecast.config import ForecastConfig
from toolkit.tasks.forecast.gateformer import Gateformer, sinusoids
from toolkit.tasks.forecast.task import Forecast

LOOKBACK = HORIZON = 96
BATCH, TRAIN_ROWS, ROWS, LR = 8, 8640, 14400, 1e-4
BLOCK = 20  # steps before the sides change
DIM, HEADS, MLP_DIM, PATCH = 64, 4, 64, 8


class PlainGateformer(nn.Module):
    """The model as one writes it from PyTorch's own parts."""

    def __init__(self, dropout: float):
        super().__init__()
        num_patches = (LOOKBACK - PATCH) // PATCH + 2

        def encoder() -> nn.Module:
            layer = nn.TransformerEncoderLayer(DIM, HEADS, MLP_DIM, dropout, batch_first=True, norm_first=True)
            return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

        self.patch = nn.Linear(PATCH, DIM, bias=False)
        self.head = nn.Linear(DIM * num_patches, DIM)
        self.whole = nn.Linear(LOOKBACK, DIM)
        self.gates = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(4))
        self.temporal, self.variate = encoder(), encoder()
        self.projection = nn.Linear(DIM, HORIZON)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("position", sinusoids(num_patches, DIM), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        centred = x - mean
        scale = torch.sqrt(centred.var(1, keepdim=True, unbiased=False) + 1e-5)
        series = (centred / scale).transpose(1, 2)
        a = self.dropout(self.whole(series))
        patches = F.pad(series, (0, PATCH), mode="replicate").unfold(-1, PATCH, PATCH).flatten(0, 1)
        tokens = self.temporal(self.dropout(self.patch(patches) + self.position))
        b = self.dropout(self.head(tokens.view(*series.shape[:2], *tokens.shape[1:]).transpose(2, 3).flatten(2)))
        gate = torch.sigmoid(self.gates[0](a) + self.gates[1](b))
        v = gate * a + (1 - gate) * b
        c = self.variate(v)
        gate = torch.sigmoid(self.gates[2](v) + self.gates[3](c))
        return self.projection(gate * v + (1 - gate) * c).transpose(1, 2) * scale + mean

    def load(self, model: Gateformer) -> None:
        """Take over the weights of ours."""
        pairs = {
            self.patch: model.patch_embedding.linear,
            self.head: model.temporal_embedding.linear,
            self.whole: model.global_embedding,
            self.gates[0]: model.variate_embedding.linear_a,
            self.gates[1]: model.variate_embedding.linear_b,
            self.gates[2]: model.gated_output.linear_a,
            self.gates[3]: model.gated_output.linear_b,
            self.temporal: model.temporal_encoder,
            self.variate: model.variate_encoder,
            self.projection: model.normalised_forecast,
        }
        for plain, ours in pairs.items():
            plain.load_state_dict(ours.state_dict())


class Windows(Dataset):
    """One item is one slice of the table, as in the official loaders."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def __len__(self) -> int:
        return len(self.values) - LOOKBACK - HORIZON + 1

    def __getitem__(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        middle = start + LOOKBACK
        return self.values[start:middle], self.values[middle : middle + HORIZON]


def plain_steps(values: np.ndarray, order: list[int], model: nn.Module) -> Iterator[Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for x, y in DataLoader(Windows(values), batch_size=BATCH, sampler=order):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x.float()), y.float())
        loss.backward()
        optimizer.step()
        yield loss.detach()


def our_steps(task: Forecast, folder: str) -> Iterator[Tensor]:
    trainer = Trainer(task, Run(Path(folder)), make_accelerator(task.config, "cpu"), Log(quiet=True))
    task.model.train()
    yield from trainer.updates()


def synthetic() -> pd.DataFrame:
    """A table of the size that ETTh1's split uses."""
    walk = np.random.default_rng(0).standard_normal((ROWS, 7)).cumsum(0)
    return pd.DataFrame(walk + 20 * np.sin(np.arange(ROWS) * 2 * np.pi / 24)[:, None]).rename(columns=str)


def compare(path: str | None, dropout: float, steps: int, folder: str) -> dict[str, float]:
    source = {"data": {"path": path or "synthetic"}, "model": {"dropout": dropout}}
    config = resolve("forecast", "gateformer_etth1_96", source)
    assert isinstance(config, ForecastConfig)
    task = build(Forecast(config, None if path else synthetic()))
    plain = PlainGateformer(dropout)
    plain.load(task.model)
    values = task.data.values[:TRAIN_ROWS].double().numpy()
    order = epoch_order(len(Windows(values)), seed=task.config.seeds[0], epoch=0).tolist()
    a, b = plain_steps(values, order, plain), our_steps(task, folder)

    def timed(loop: Iterator[Tensor]) -> tuple[float, list[float]]:
        start = time.process_time()
        losses = [loss.item() for loss in islice(loop, BLOCK)]
        return (time.process_time() - start) / len(losses), losses

    pairs, difference = [], 0.0
    for _ in range(0, min(steps, -(-len(order) // BATCH)), BLOCK):
        (time_a, losses_a), (time_b, losses_b) = timed(a), timed(b)
        difference = max(difference, *(abs(x - y) for x, y in zip(losses_a, losses_b, strict=True)))
        pairs.append((time_a, time_b))
    pairs = pairs[1:] or pairs  # the first block warms up
    plain_seconds, our_seconds = zip(*pairs, strict=True)
    ratios = [ours / plain for plain, ours in pairs]
    return {
        "dropout": dropout,
        "steps": steps,
        "plain_ms": 1e3 * statistics.median(plain_seconds),
        "ours_ms": 1e3 * statistics.median(our_seconds),
        "ratio": sum(our_seconds) / sum(plain_seconds),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "largest_loss_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="ETTh1.csv; without it, a synthetic table of the same size")
    parser.add_argument("--steps", type=int, default=1057, help="steps of each side (1057: one epoch)")
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"data: {options.data or 'synthetic, the size of ETTh1'}; 1 thread; process time a step")
    print("dropout  plain ms  ours ms  ratio  median (min..max of blocks)  largest loss difference")
    rows = []
    for dropout in (0.0, 0.1):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(options.data, dropout, options.steps, folder))
    for row in rows:
        same = f"{row['largest_loss_difference']:.1e}" if row["dropout"] == 0 else "other masks"
        print(
            f"{row['dropout']:7.1f}  {row['plain_ms']:8.2f}  {row['ours_ms']:7.2f}  {row['ratio']:5.3f}"
            f"  {row['ratio_median']:6.3f} ({row['ratio_min']:.3f}..{row['ratio_max']:.3f})         {same}"
        )
    if options.json:
        result = {"data": options.data or "synthetic", "rows": rows}
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
