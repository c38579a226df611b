from __future__ import annotations

import math
import signal

import pytest
import torch
from toy_task import Toy

from toolkit.engine import loop
from toolkit.engine.config import TrainConfig
from toolkit.engine.distributed import make_accelerator
from toolkit.engine.log import Log
from toolkit.engine.run import Run, clean
from toolkit.errors import InputError, ToolkitError


def settings(**changes) -> TrainConfig:
    return TrainConfig.build(
        {
            "batch_size": 6,
            "epochs": 3,
            "log_every": 1,
            "optim": {"lr": 0.01},
            "checkpoint_minutes": 0.0,
            "patience": None,
        },
        changes,
    )


def train(folder, config=None, fail_at=None, **toy) -> tuple[Toy, list[dict]]:
    config = config or settings()
    run = Run(folder)
    if not (folder / "config.yaml").exists():
        run = Run.create(folder, config, "cpu")
    clean(folder)
    task = Toy(config, **toy)
    task.fail_at = fail_at
    loop.fit(task, run, make_accelerator(config, "cpu"), Log(quiet=True))
    return task, [{key: value for key, value in row.items() if key != "time"} for row in run.history()]


PLAIN = {"lr": 0.01}
EVERYTHING = {"lr": 0.01, "schedule": "warmup_cosine", "warmup": 0.5, "min_lr": 1e-4, "clip": 1.0, "ema": 0.8}


@pytest.mark.parametrize("optim", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("fail_at", [1, 3, 7, 8, 12])
def test_a_killed_run_continues_exactly(fail_at, optim, tmp_path):
    config = settings(optim=optim)
    whole, expected = train(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, fail_at=fail_at)
    torch.manual_seed(99)  # whatever happened meanwhile
    continued, history = train(tmp_path / "cut", config)
    assert history == expected
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, continued.model.state_dict()[name])


def test_averaged_weights_are_measured_and_kept(tmp_path):
    """The averages of an explicit loop; the first update copies, as an average of one."""
    config = settings(optim={"lr": 0.01, "schedule": "constant", "ema": 0.8}, epochs=1)
    averaged, history = train(tmp_path / "averaged", config, dropout=0.0)
    by_hand = Toy(config, dropout=0.0)
    (optimizer,), average = by_hand.optimizers(), None
    for batch, _ in by_hand.train_batches(0, 0, 0, 1):
        by_hand.train_step(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        weights = [parameter.detach().clone() for parameter in by_hand.model.parameters()]
        average = [0.8 * a + 0.2 * w for a, w in zip(average, weights, strict=True)] if average else weights
    for parameter, expected in zip(averaged.model.parameters(), average, strict=True):
        torch.testing.assert_close(parameter.detach(), expected)
    sums = averaged.eval_step((averaged.x, averaged.y))
    assert history[-1]["loss"] == pytest.approx(averaged.metrics(sums)["loss"])


def test_gradients_are_clipped(tmp_path):
    """With plain gradient descent no update is longer than rate times norm."""
    config = settings(optim={"lr": 0.01, "schedule": "constant", "clip": 0.5}, epochs=1)
    task = Toy(config, dropout=0.0)
    task.optimizers = lambda: [torch.optim.SGD(task.model.parameters(), lr=1.0)]
    lengths, before = [], torch.nn.utils.parameters_to_vector(task.model.parameters()).detach().clone()
    step = task.train_step

    def watch(batch):
        nonlocal before
        now = torch.nn.utils.parameters_to_vector(task.model.parameters()).detach().clone()
        lengths.append((now - before).norm().item())
        before = now
        return step(batch)

    task.train_step = watch
    loop.fit(task, Run.create(tmp_path / "run", config, "cpu"), make_accelerator(config, "cpu"), Log(quiet=True))
    assert max(lengths) == pytest.approx(0.01 * 0.5, rel=1e-3)


def test_sparse_checkpoints_forget_what_came_after(tmp_path):
    config = settings(checkpoint_minutes=60)
    _, expected = train(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, fail_at=12)
    _, history = train(tmp_path / "cut", config)
    assert history == expected


def test_a_mean_over_several_steps_survives_the_cut(tmp_path):
    config = settings(log_every=4)
    _, expected = train(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, fail_at=6)
    _, history = train(tmp_path / "cut", config)
    assert history == expected


def test_ctrl_c_saves_and_stops(tmp_path, monkeypatch):
    def interrupting(self, batch):
        self.steps += 1
        if self.steps == 5:
            signal.raise_signal(signal.SIGINT)
        return (self.model(batch[0]) - batch[1]).square().mean(), {}

    _, expected = train(tmp_path / "whole")
    config = settings(checkpoint_minutes=60)
    with monkeypatch.context() as patch:
        patch.setattr(Toy, "train_step", interrupting)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", config)
    assert Run(tmp_path / "cut").history()[-1]["step"] == 5, "the step is finished"
    _, history = train(tmp_path / "cut", config)
    assert history == expected


def test_accumulation_changes_nothing_but_memory(tmp_path):
    _, losses = train(tmp_path / "one", dropout=0.0)
    _, same = train(tmp_path / "three", settings(accumulate=3), dropout=0.0)
    assert [row["step"] for row in same] == [row["step"] for row in losses]
    for row, other in zip(losses, same, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_early_stopping_restores_the_best(tmp_path):
    config = settings(epochs=20, patience=2, optim={"lr": 3.0})
    task, history = train(tmp_path / "run", config)
    losses = [row["loss"] for row in history if row["split"] == "val"]
    assert len(losses) < 20
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2
    assert loop.evaluate(task, "val", make_accelerator(config, "cpu"))["loss"] == pytest.approx(min(losses))


def test_max_steps_stops_inside_an_epoch(tmp_path):
    _, history = train(tmp_path / "run", settings(max_steps=4))
    assert [row["step"] for row in history] == [1, 2, 3, 4, 4]
    assert history[-1]["split"] == "val"


def test_a_finished_run_is_not_trained_again(tmp_path):
    _, history = train(tmp_path / "run")
    task, again = train(tmp_path / "run")
    assert task.steps == 0
    assert again == history


def test_divergence_is_reported(tmp_path):
    with pytest.raises(ToolkitError, match="training loss is (nan|inf)"):
        train(tmp_path / "run", settings(optim={"lr": 1e30}))


def test_unknown_monitor(tmp_path):
    with pytest.raises(InputError, match="monitor='accuracy' is no validation metric"):
        train(tmp_path / "run", settings(monitor="accuracy"))


def test_evaluation_does_not_depend_on_the_number_of_shards():
    task = Toy(settings())
    task.model.eval()
    totals = [
        sum(
            task.eval_step(batch)["error"].item()
            for rank in range(world)
            for batch in task.eval_batches("val", rank, world)
        )
        for world in (1, 2, 3)
    ]
    assert math.isclose(totals[0], totals[1], rel_tol=1e-6)
    assert math.isclose(totals[0], totals[2], rel_tol=1e-6)


def test_unavailable_device():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="device 'cuda' is not available. Available: cpu"):
        make_accelerator(settings(), "cuda")


def test_a_run_that_died_before_its_first_checkpoint_starts_its_log_anew(tmp_path):
    config = settings(checkpoint_minutes=60)
    _, expected = train(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, fail_at=4)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    _, history = train(tmp_path / "cut", config)
    assert history == expected
