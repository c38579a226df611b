"""Memories with the delta rule: a layer over tokens (Gated DeltaNet), and the memory of a video (GDKVM)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.errors import InputError
from toolkit.kernels.gated_delta_rule import gated_delta_rule, gated_delta_rule_step
from toolkit.kernels.gated_fusion import swiglu
from toolkit.kernels.gdkvm_memory import gdkvm_memory, gdkvm_memory_step
from toolkit.kernels.gdkvm_memory.reference import gates


class DeltaState(NamedTuple):
    """What ``DeltaMemory`` carries from token to token.

    Attributes:
        recent: projections of the last ``conv_size - 1`` tokens, ``[B, channels, conv_size - 1]``.
        memory: ``[B, num_heads, head_dim, value_dim]``, float32.
    """

    recent: Tensor
    memory: Tensor


class DeltaMemory(nn.Module):
    """A causal layer that writes tokens into a matrix per head by the gated delta rule, and reads from it.

    Queries, keys and values pass a short causal convolution and SiLU, queries and keys are normalised; ``beta =
    sigmoid(W_b x)``, log decay ``g = -e^A_log softplus(W_a x + dt_bias)``; the read value is normalised per head and
    gated by ``silu(W_g x)``. Source: Yang, Kautz and Hatamizadeh, *Gated Delta Networks*, arXiv 2412.06464, 3.3.

    Args:
        dim: channels of the input and the output.
        num_heads: number of matrices.
        head_dim: width of queries and keys.
        value_dim: width of values; that of the keys by default.
        conv_size: tokens that the convolution sees; 1 leaves it a weight per channel.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, value_dim: int | None = None, conv_size: int = 4):
        super().__init__()
        self.dim, self.num_heads, self.head_dim, self.conv_size = dim, num_heads, head_dim, conv_size
        self.value_dim = head_dim if value_dim is None else value_dim
        self.widths = (num_heads * head_dim, num_heads * head_dim, num_heads * self.value_dim)
        channels = sum(self.widths)
        self.qkv_proj = nn.Linear(dim, channels, bias=False)
        self.conv = nn.Conv1d(channels, channels, conv_size, groups=channels, bias=False)
        self.a_proj = nn.Linear(dim, num_heads, bias=False)
        self.b_proj = nn.Linear(dim, num_heads, bias=False)
        self.A_log, self.dt_bias = decay_parameters(num_heads)
        self.g_proj = nn.Linear(dim, self.widths[2], bias=False)
        self.norm = nn.RMSNorm(self.value_dim, eps=1e-5)
        self.out_proj = nn.Linear(self.widths[2], dim, bias=False)

    def initial_state(self, batch: int) -> DeltaState:
        """The empty memory, and no tokens before the first."""
        recent = self.conv.weight.new_zeros(batch, sum(self.widths), self.conv_size - 1)
        shape = (batch, self.num_heads, self.head_dim, self.value_dim)
        return DeltaState(recent, torch.zeros(shape, device=recent.device))

    def forward(self, x: Tensor, state: DeltaState | None = None) -> tuple[Tensor, DeltaState]:
        """Tokens ``[B, T, dim]`` after those that made ``state``; returns ``[B, T, dim]`` and the state after them."""
        self._check(x, 3, "[B, T, dim]")
        recent, memory = self.initial_state(len(x)) if state is None else state
        (q, k, v), recent = self._mix(x, recent)
        o, memory = gated_delta_rule(q, k, v, self.log_decay(x), self.beta(x), qk_l2norm=True, initial_state=memory)
        return self._read(o, x), DeltaState(recent, memory)

    @torch.no_grad()
    def step(self, x: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState]:
        """One token ``[B, dim]`` of a stream, without gradients: returns ``[B, dim]``; ``state.memory`` is updated."""
        self._check(x, 2, "[B, dim]")
        mixed, recent = self._mix(x.unsqueeze(1), state.recent)
        q, k, v = (part.squeeze(1) for part in mixed)
        o = gated_delta_rule_step(q, k, v, self.log_decay(x), self.beta(x), state.memory, qk_l2norm=True)
        return self._read(o, x), DeltaState(recent, state.memory)

    def log_decay(self, x: Tensor) -> Tensor:
        """``g [..., num_heads]``, at most 0, in the type of ``A_log``."""
        return -self.A_log.exp() * F.softplus(self.a_proj(x) + self.dt_bias)

    def beta(self, x: Tensor) -> Tensor:
        """How much of a key's old value is replaced, ``[..., num_heads]``."""
        return self.b_proj(x).sigmoid()

    def _mix(self, x: Tensor, recent: Tensor) -> tuple[list[Tensor], Tensor]:
        """q, k and v ``[B, T, num_heads, width]``, and the projections that the next tokens' convolution needs."""
        seen = torch.cat([recent, self.qkv_proj(x).mT], -1)
        mixed = F.silu(self.conv(seen)).mT
        parts = [part.unflatten(-1, (self.num_heads, -1)) for part in mixed.split(self.widths, -1)]
        return parts, seen[..., seen.shape[-1] - self.conv_size + 1 :]

    def _read(self, o: Tensor, x: Tensor) -> Tensor:
        return self.out_proj(swiglu(self.g_proj(x), self.norm(o.to(self.norm.weight.dtype)).flatten(-2)))

    def _check(self, x: Tensor, dims: int, layout: str) -> None:
        if x.dim() != dims or x.shape[-1] != self.dim:
            raise InputError(f"x has shape {list(x.shape)}, not {layout} with dim = {self.dim}")


class GDKVMMemory(nn.Module):
    """GDKVM's key-value memory of a video: written by whole frames, gated by what it holds.

    Source: Wang et al., *GDKVM*, arXiv 2512.10252, and its published code; parameters are named as in its checkpoints.

    Args:
        value_dim: width V of values.
        num_heads: gates per key row; divides V.
        decay: ``exp`` (the re-release) or ``raw`` (the paper's code; negative and unbounded).
        alpha_expand: ``interleave`` (the re-release) or ``tile`` (the paper's code).
        key_scale: ``spectral`` bounds what a frame erases and writes, for long clips and large frames; ``none`` in both
            versions (``toolkit.kernels.gdkvm_memory``).
    """

    def __init__(
        self,
        value_dim: int = 256,
        num_heads: int = 8,
        decay: str = "exp",
        alpha_expand: str = "interleave",
        key_scale: str = "none",
    ):
        super().__init__()
        self.value_dim, self.num_heads = value_dim, num_heads
        self.decay, self.alpha_expand, self.key_scale = decay, alpha_expand, key_scale
        self.a_proj = nn.Linear(value_dim, num_heads, bias=False)
        self.b_proj = nn.Linear(value_dim, num_heads, bias=False)
        self.A_log, self.dt_bias = decay_parameters(num_heads)

    def forward(self, key: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A whole clip.

        Args:
            key: ``[B, T, K, h, w]``, before the softmax over K.
            value: ``[B, T, N, V, h, w]`` of N objects.
            state: ``[B, N, K, V]`` of the frames before; None for the beginning of a clip.

        Returns:
            Readouts like ``value``, and the state after each frame ``[B, T, N, K, V]``, float32.
        """
        readout, states = gdkvm_memory(key.flatten(-2), value.flatten(-2), initial_state=state, **self._arguments())
        return readout.unflatten(-1, value.shape[-2:]), states

    def step(self, key: Tensor, value: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """One frame, with gradients: ``key [B, K, h, w]``, ``value [B, N, V, h, w]``; returns readout and state."""
        readout, state = gdkvm_memory_step(key.flatten(-2), value.flatten(-2), state, **self._arguments())
        return readout.unflatten(-1, value.shape[-2:]), state

    def gates(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and beta ``[B, N, K, num_heads]`` that the frame after ``state`` meets."""
        return gates(state, self.a_proj.weight, self.b_proj.weight, self.A_log, self.dt_bias, self.decay)

    def _arguments(self) -> dict[str, Any]:
        weights = {"a_proj": self.a_proj.weight, "b_proj": self.b_proj.weight}
        options = {"decay": self.decay, "alpha_expand": self.alpha_expand, "key_scale": self.key_scale}
        return {**weights, "A_log": self.A_log, "dt_bias": self.dt_bias, **options}


def decay_parameters(heads: int) -> tuple[nn.Parameter, nn.Parameter]:
    """``A_log`` and ``dt_bias`` as the published code of both models draws them.

    The decay ``e^A_log softplus(dt_bias)`` of an empty input is A dt, with A uniform in (0, 16) and dt log-uniform in
    [0.001, 0.1].
    """
    A = torch.empty(heads).uniform_(0, 16).clamp_min_(torch.finfo(torch.float32).tiny)  # uniform_ may draw 0
    dt = torch.empty(heads).uniform_(math.log(0.001), math.log(0.1)).exp_()
    return nn.Parameter(A.log_()), nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
