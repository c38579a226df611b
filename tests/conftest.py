"""Shared fixtures: no network, no user folders, seeded draws, and real data where the user has it."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton, whose own functions are made by it too
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path_factory):
    """Seed everything, keep the user's folders out of it, and refuse connections to other machines."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    monkeypatch.delenv("TOOLKIT_DATA", raising=False)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    connect = socket.socket.connect

    def local_only(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests are offline, but something connects to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture
def real_data(request) -> Path:
    """The folder of real data sets: ``$TOOLKIT_DATA`` of the session, or ``shared/data`` beside the checkout."""
    for folder in (_USER_DATA, ROOT.parent / "shared" / "data"):
        if folder and folder.is_dir():
            return folder
    pytest.skip("needs real data sets: set TOOLKIT_DATA to a folder that holds ett/ETTh1.csv and others")


_USER_DATA = Path(os.environ["TOOLKIT_DATA"]) if os.environ.get("TOOLKIT_DATA") else None


@pytest.fixture
def make_csv(tmp_path):
    """Write a regular hourly table of noisy daily cycles; returns its path."""

    def make(rows: int = 600, columns: int = 3, name: str = "own.csv", change=None) -> Path:
        draws = np.random.default_rng(0)
        hours = np.arange(rows)[:, None]
        values = np.sin(2 * np.pi * hours / 24 + np.arange(columns)) + 0.1 * draws.standard_normal((rows, columns))
        frame = pd.DataFrame(values * 5 + 20, columns=[f"load{number}" for number in range(columns)])
        frame.insert(0, "date", pd.date_range("2024-01-01", periods=rows, freq="h").astype(str))
        if change is not None:
            frame = change(frame)
        path = tmp_path / name
        frame.to_csv(path, index=False)
        return path

    return make
