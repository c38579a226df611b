"""The gate as a plug-in: Gateformer's gated fusion and variate attention around any forecaster.

After "Gateformer: Advancing Multivariate Time Series Forecasting via Temporal and Variate-Wise Attention with Gated
Representations", Lan and Oermann, arXiv 2505.00307, which reports gains for wrapped models (marked by an asterisk). The
released code holds no wrapper: how the parts are joined here is this project's reading of the paper.

Legend: B windows, D variates, L look-back, H horizon, N tokens of a series, d channels (``dim``).

A host is a module that gives a representation instead of a forecast. It may say so by attributes:

* ``takes``: what it is given, one of

  ============  ===========================================  ==========================================
  ``series``    normalised series ``[B D, L]``               one vector ``[B D, c]`` or tokens ``[B D, n, c]``
  ``patches``   embedded patches ``[B D, N, host_dim]``      the same
  ``variates``  variate tokens ``[B, M, d]``, any M          mixed tokens ``[B, M, d]``
  ============  ===========================================  ==========================================

* ``encode``: the method that does it; without one the host is called itself;
* ``embed``, for ``variates``: its own map of series ``[B, M, L]`` to tokens; with ``uses_marks`` the calendar is
  embedded too, as F further tokens that the host attends to;
* ``dim``: channels of the tokens that it takes;
* ``own_head``: the name of its sub-module from representation to forecast, which the gate has no use for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit import registry
from toolkit.blocks.dropout import Dropout
from toolkit.blocks.fusion import GatedFusion
from toolkit.blocks.normalization import instance_normalise
from toolkit.blocks.transformer import EncoderLayer, TransformerEncoder
from toolkit.engine import checkpoint
from toolkit.engine.run import Run
from toolkit.errors import InputError, nearest
from toolkit.tasks.forecast.gateformer import PatchEmbedding

PATCH_LEN = 8  # steps of a patch and from one to the next, as in every official script of Gateformer
GIVES = {
    "series": "[series, channels] or [series, tokens, channels]",
    "patches": "[series, channels] or [series, tokens, channels]",
    "variates": "tokens of the shape that it is given",
}


def gate_forecaster(
    host: nn.Module,
    lookback: int | None = None,
    horizon: int | None = None,
    *,
    takes: str | None = None,
    host_dim: int | None = None,
    dim: int | None = None,
    depth: int = 1,
    num_heads: int = 4,
    mlp_dim: int | None = None,
    dropout: float = 0.1,
    freeze: bool = False,
) -> GatedForecaster:
    """Put Gateformer's gates and variate attention around a forecaster.

    Args:
        host: a model of this task that has ``encode``, or any module that keeps the contract of this file. It becomes
            part of the result and loses its own forecasting head: pass ``copy.deepcopy(host)`` to keep it.
        lookback: input steps; None: those of the host.
        horizon: output steps; None: those of the host.
        takes: what the host is given: ``series``, ``patches`` or ``variates``; None: what it says, else ``series``.
        host_dim: channels of the tokens that a host of ``patches`` or ``variates`` takes; None: its attribute ``dim``.
        dim: channels of the gates; None: 64, or for a host of ``variates`` those of its tokens.
        depth: layers of the encoder that the host does not bring: over the variates, or for a host of ``variates`` over
            the patches.
        num_heads: attention heads of that encoder.
        mlp_dim: hidden channels of its layers; None: ``dim``.
        dropout: rate of every dropout outside of the host.
        freeze: the host keeps its weights and stays in eval mode; only what is around it learns.

    Returns:
        A module that maps standardised values ``[B, L, D]`` to ``[B, H, D]``. ``toolkit.save`` writes it if the host's
        class is a registered model.

    Raises:
        InputError: an argument out of range, or a host that does not keep the contract, with the shapes it was given
            and gave.
    """
    sizes: dict[str, Any] = {"lookback": lookback, "horizon": horizon}
    for name, size in sizes.items():
        sizes[name] = getattr(host, name, None) if size is None else size
        if sizes[name] is None:
            raise InputError(f"the host {type(host).__name__} does not tell its {name}", f"Pass {name}=...")
    return GatedForecaster(
        host, **sizes, takes=takes, host_dim=host_dim, dim=dim, depth=depth, num_heads=num_heads, mlp_dim=mlp_dim,
        dropout=dropout, freeze=freeze,
    )  # fmt: skip


class GatedForecaster(nn.Module):
    """Gateformer with a host in the place of its temporal encoder, or of its variate encoder.

    The steps are those of ``gateformer.py``. A host of series or patches gives the temporal embedding; a host of
    variates gives the attention over them, and embeds whole series if it can.

    Args:
        host: a module as for ``gate_forecaster``, or what ``toolkit.registry.describe`` says of a registered one.
        lookback: input steps.
        horizon: output steps.
        takes, host_dim, dim, depth, num_heads, mlp_dim, dropout, freeze: see ``gate_forecaster``.
    """

    host: Any  # an nn.Module

    def __init__(
        self,
        host: Any,
        lookback: int,
        horizon: int,
        *,
        takes: str | None = None,
        host_dim: int | None = None,
        dim: int | None = None,
        depth: int = 1,
        num_heads: int = 4,
        mlp_dim: int | None = None,
        dropout: float = 0.1,
        freeze: bool = False,
    ):
        super().__init__()
        if isinstance(host, Mapping):
            host = registry.models.load(host["architecture"], "forecast")(**host["arguments"])
        if not isinstance(host, nn.Module):
            raise InputError(f"the host is a {type(host).__name__}", "Pass an nn.Module")
        takes = takes or str(getattr(host, "takes", "series"))
        if takes not in GIVES:
            raise InputError(f"the host takes {takes!r}", nearest(takes, GIVES) or f"Choose one of {', '.join(GIVES)}")
        if takes != "series":
            host_dim = getattr(host, "dim", None) if host_dim is None else host_dim
            if host_dim is None:
                raise InputError(f"the host {type(host).__name__} does not tell its channels", "Pass host_dim=...")
        if takes == "variates" and dim not in (None, host_dim):
            raise InputError(f"dim is {dim}, but the host's variate tokens have {host_dim} channels", "Leave dim out")
        if dim is None:
            dim = host_dim if takes == "variates" and host_dim else 64
        channels = host_dim or dim  # of the patch embedding
        if takes != "series" and channels % 2:
            raise InputError(f"the host's tokens have {channels} channels", "Positions need pairs of them")
        mlp_dim = dim if mlp_dim is None else mlp_dim
        sizes = {"lookback": lookback, "horizon": horizon, "dim": dim, "depth": depth, "mlp_dim": mlp_dim}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name} is {size}", "It must be at least 1")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}", "It must be at least 0 and below 1")
        self.lookback, self.horizon = lookback, horizon
        self.takes, self.host_dim, self.freeze = takes, host_dim, freeze
        self.dim, self.depth, self.num_heads, self.mlp_dim = dim, depth, num_heads, mlp_dim
        self.dropout = dropout

        self.host = host
        self.embeds_variates = takes == "variates" and hasattr(host, "embed")
        self.uses_marks = self.embeds_variates and getattr(host, "uses_marks", False)

        patch_len = min(PATCH_LEN, lookback)
        num_patches = (lookback - patch_len) // PATCH_LEN + 2
        if not self.embeds_variates:
            self.global_embedding = nn.Linear(lookback, dim)
        if takes != "series":
            self.patch_embedding = PatchEmbedding(num_patches, patch_len, PATCH_LEN, channels, dropout)
        if takes == "variates":
            self.temporal_encoder = TransformerEncoder(EncoderLayer(dim, num_heads, mlp_dim, dropout), depth)
        else:
            self.variate_encoder = TransformerEncoder(EncoderLayer(dim, num_heads, mlp_dim, dropout), depth)
        self.temporal_embedding = nn.Linear(self._num_features(num_patches, channels), dim)
        self.variate_embedding = GatedFusion(dim)
        self.gated_output = GatedFusion(dim)
        self.normalised_forecast = nn.Linear(dim, horizon)
        self.drop = Dropout(dropout)

        # At the end: a host that does not fit is given back as it came.
        if hasattr(host, own_head := str(getattr(host, "own_head", ""))):
            delattr(host, own_head)
        if freeze:
            host.requires_grad_(False).eval()

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """Map standardised values ``[B, L, D]`` to ``[B, H, D]``.

        Args:
            marks: calendar ``[B, L, F]``; only a host of variates that ``uses_marks`` reads it.
        """
        series, mean, scale = instance_normalise(x.transpose(1, 2))  # [B, D, L]

        whole = self.whole(series)  # [B, D, d]
        parts = self.temporal_embedding(self.temporal_features(series.flatten(0, 1)))  # [B D, d]
        parts = self.drop(parts.view(whole.shape))

        variates = self.variate_embedding(whole, parts)
        mixed = self.mixed(variates, marks)
        output = self.gated_output(variates, mixed)

        forecast = self.normalised_forecast(output)  # [B, D, H]
        return torch.addcmul(mean, forecast, scale).transpose(1, 2)

    def whole(self, series: Tensor) -> Tensor:
        """The global embedding, from all steps of a series at once: ``[B, D, L]`` to ``[B, D, d]``."""
        return self.host.embed(series) if self.embeds_variates else self.drop(self.global_embedding(series))

    def temporal_features(self, series: Tensor) -> Tensor:
        """What the temporal embedding is a linear map of: ``[B D, L]`` to ``[B D, c]``, tokens channel-major."""
        if self.takes == "series":
            tokens = self.encode(series)
        elif self.takes == "patches":
            tokens = self.encode(self.patch_embedding(series))
        else:
            tokens = self.temporal_encoder(self.patch_embedding(series))
        return tokens.transpose(1, 2).flatten(1) if tokens.dim() == 3 else tokens

    def mixed(self, variates: Tensor, marks: Tensor | None) -> Tensor:
        """Attention over the variates: ``[B, D, d]`` to ``[B, D, d]``."""
        if self.takes != "variates":
            return self.variate_encoder(variates)
        if marks is None or not self.uses_marks:
            return self.encode(variates)
        tokens = torch.cat((variates, self.host.embed(marks.transpose(1, 2))), dim=1)
        return self.encode(tokens)[:, : variates.shape[1]]

    def encode(self, x: Tensor) -> Tensor:
        """The host's representation of what it takes."""
        return self.host.encode(x) if hasattr(self.host, "encode") else self.host(x)

    def train(self, mode: bool = True) -> GatedForecaster:
        """As for any module, but a frozen host stays in eval mode."""
        super().train(mode)
        if self.freeze:
            self.host.eval()
        return self

    @torch.no_grad()
    def _num_features(self, num_patches: int, channels: int) -> int:
        """Numbers that stand for one series, found with a small input that shows if the host keeps the contract."""
        inputs = {"series": (3, self.lookback), "patches": (3, num_patches, channels), "variates": (2, 3, channels)}
        given = inputs[self.takes]
        like = next(self.host.parameters(), torch.empty(0))
        name, training = type(self.host).__name__, self.host.training
        expected = f"A host that takes {self.takes} gives {GIVES[self.takes]}"
        self.host.eval()
        try:
            probe = torch.zeros(given, dtype=like.dtype, device=like.device)
            if self.embeds_variates:
                probe = self.host.embed(probe.new_zeros(*given[:2], self.lookback))
            found = self.encode(probe)
        except Exception as error:  # whatever a module from elsewhere raises
            reason = " ".join(str(error).split())
            raise InputError(f"the host {name} fails on {self.takes} of shape {given}: {reason}", expected) from error
        finally:
            self.host.train(training)
        if not isinstance(found, Tensor):
            raise InputError(f"the host {name} gives a {type(found).__name__}, not a tensor", expected)
        shape = tuple(found.shape)
        if shape != given if self.takes == "variates" else len(shape) not in (2, 3) or shape[0] != given[0]:
            raise InputError(f"the host {name} gives shape {shape} for {self.takes} of shape {given}", expected)
        return num_patches * self.dim if self.takes == "variates" else found[0].numel()


def load_host(host: nn.Module, name: str, source: Path) -> None:
    """Fill a host with the weights of a trained model of the same name.

    Args:
        source: a run folder, which stands for its best checkpoint, or a model directory.

    Raises:
        InputError: nothing there, another model, or other sizes.
    """
    folder = source
    if (source / "config.yaml").is_file():
        best = checkpoint.existing(Run(source).best)
        if best is None:
            raise InputError(f"run {source} has no checkpoint", "Name a finished run of one seed")
        folder = best
    found = checkpoint.read_card(folder)["architecture"]
    if found != name:
        raise InputError(f"gate.weights={source} holds the model {found!r}, not {name!r}", f"Name a run of {name}")
    weights = folder / checkpoint.MODEL
    checkpoint.load_strictly(host, checkpoint.read_tensors(weights), str(weights))


VARIANTS = {"gated": "GatedForecaster"}
