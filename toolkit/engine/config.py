"""Settings that every trained task shares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from toolkit.config import Config

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes


class OptimConfig(Config):
    """The optimiser and its learning-rate schedule (``toolkit.engine.optim``)."""

    name: Literal["adam", "adamw"] = Field("adam", description="adam or adamw")
    lr: PositiveFloat = Field(1e-4, description="learning rate; never scaled silently")
    weight_decay: float = Field(0.0, ge=0, description="added to the gradient (adam), or decoupled (adamw)")
    schedule: Literal["constant", "halving", "decay", "table", "plateau_decay", "cosine", "warmup_cosine"] = Field(
        "halving",
        description="learning rate: constant, halving, decay, table, plateau_decay, cosine; by update: warmup_cosine",
    )
    warmup: float = Field(0.0, ge=0, description="epochs from 0 to lr (warmup_cosine)")
    min_lr: float = Field(0.0, ge=0, description="what the rate falls to (warmup_cosine)")
    clip: PositiveFloat | None = Field(None, description="largest norm of an update's gradient; null: any")
    ema: float | None = Field(
        None, ge=0, lt=1, description="decay of averaged weights, which are what counts; null: none"
    )


class PublishedConfig(Config):
    """Figures that a recipe is held against, and where they come from."""

    metrics: dict[str, float] = Field(default_factory=dict, description="name: value; empty if none can be quoted")
    source: str = Field("", description="where the figures stand, or why there is none")


class TrainConfig(Config):
    """Base of a task's configuration: what the engine reads."""

    name: str = Field("custom", pattern=r"^[\w.-]+$", description="what the run is called, by default its recipe")
    optim: OptimConfig = OptimConfig()
    batch_size: PositiveInt = Field(32, description="samples per update, over all devices and accumulation steps")
    eval_batch_size: PositiveInt = Field(32, description="samples per evaluation step; no metric depends on it")
    accumulate: PositiveInt = Field(1, description="pieces in which a batch is processed, to save memory")
    epochs: PositiveInt = Field(10, description="passes over the training windows, at most")
    patience: PositiveInt | None = Field(3, description="epochs without improvement before stopping; null: never")
    monitor: str = Field("loss", description="validation metric that picks the best checkpoint")
    direction: Literal["min", "max"] = Field("min", description="whether a smaller or a larger value is better")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="fp32, or autocast to bf16 or fp16")
    threads: PositiveInt | None = Field(None, description="CPU threads; null: one for small steps, else all")
    seeds: list[Seed] = Field([0], min_length=1, description="one run each; several give mean ± std")
    max_steps: PositiveInt | None = Field(None, description="stop after this many updates")
    log_every: PositiveInt = Field(50, description="updates per line of metrics.jsonl")
    checkpoint_minutes: float = Field(5.0, ge=0, description="longest time between checkpoints inside an epoch")
    published: PublishedConfig = PublishedConfig()
    reference: PublishedConfig = PublishedConfig()

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands there twice")
        return seeds
