"""What the gated delta rule means, whatever computes it: its definition, one token at a time, and simple cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels.gated_delta_rule import gated_delta_rule, gated_delta_rule_step, reference


def example(B=2, T=70, H=2, K=8, V=12, S=2, dtype=torch.float32) -> list[Tensor]:
    q, k = torch.randn(2, B, T, H, K)
    g, beta = torch.rand(2, B, T, H)
    tensors = q, torch.nn.functional.normalize(k, dim=-1), torch.randn(B, T, H, V), -0.2 * g, beta
    return [x.to(dtype).requires_grad_() for x in (*tensors, torch.randn(S, H, K, V))]


@pytest.mark.parametrize("qk_l2norm", [False, True])
def test_steps_equal_the_sequence(qk_l2norm: bool) -> None:
    q, k, v, g, beta, state = (x.detach() for x in example(T=9))
    o, final = gated_delta_rule(q, k, v, g, beta, initial_state=state, qk_l2norm=qk_l2norm)
    running = state.clone()
    steps = [
        gated_delta_rule_step(*(x[:, t] for x in (q, k, v, g, beta)), running, qk_l2norm=qk_l2norm) for t in range(9)
    ]
    torch.testing.assert_close((torch.stack(steps, 1), running), (o, final), rtol=1e-5, atol=1e-5)


def test_step_errors() -> None:
    q, k, v, g, beta, state = (x.detach() for x in example(T=1))
    q, k, v, g, beta = (x[:, 0] for x in (q, k, v, g, beta))
    with pytest.raises(InputError, match="state is torch.bfloat16"):
        gated_delta_rule_step(q, k, v, g, beta, state.bfloat16())
    with pytest.raises(InputError, match=r"beta has shape \[2, 2, 1\], but q \[2, 2, 8\] wants \[B, H\]"):
        gated_delta_rule_step(q, k, v, g, beta.unsqueeze(-1), state)


@pytest.mark.parametrize("packed", [None, [0, 3, 3, 7]])
def test_gradcheck_of_the_definition(packed: list[int] | None) -> None:
    bounds = None if packed is None else torch.tensor(packed)
    inputs = example(1, 7, 1, 3, 2, S=1 if packed is None else 3, dtype=torch.float64)

    def run(*tensors):
        return reference.gated_delta_rule(*tensors, bounds, 0.5, packed is None)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_a_key_returns_what_was_written_last() -> None:
    """With beta = 1, unit keys and no decay the memory is exact, however often a key is overwritten."""
    _, k, v, g, beta, _ = (x.detach() for x in example(T=40))
    k = torch.nn.functional.normalize(k, dim=-1)
    o, _ = gated_delta_rule(k, k, v, torch.zeros_like(g), torch.ones_like(beta), scale=1.0)
    torch.testing.assert_close(o, v, rtol=1e-4, atol=1e-4)


def test_nothing_written_is_pure_decay() -> None:
    q, k, v, g, beta, state = (x.detach() for x in example())
    o, final = gated_delta_rule(q, k, v, g, torch.zeros_like(beta), initial_state=state)
    torch.testing.assert_close(final, g.sum(1).exp()[..., None, None] * state)
    read = torch.einsum("bthk,bhkv->bthv", q, state) * g.cumsum(1).exp().unsqueeze(-1) * 8**-0.5
    torch.testing.assert_close(o, read, rtol=1e-4, atol=1e-5)
