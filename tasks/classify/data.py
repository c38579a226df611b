"""From a labelled set of images to batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toolkit import registry
from toolkit.data import cards
from toolkit.data.cache import find_folder
from toolkit.data.images import ImageSet, Samples, read_images
from toolkit.data.transforms import EvalTransform, TrainTransform
from toolkit.errors import InputError
from toolkit.tasks.classify.config import DataConfig

Batch = tuple[Tensor, Tensor]  # images float32 [B, 3, size, size], class numbers int64 [B]


def load_images(data: DataConfig, skip_bad: bool) -> tuple[ImageSet, cards.ImageCard | None]:
    """Read a set with the splits train, val and test.

    Returns:
        the set, and the card of a named one.

    Raises:
        InputError, DataNotFoundError: the images cannot be used.
    """
    card = _card(data.name) if data.name is not None else None
    if data.path is not None:
        found = read_images(data.path, image=data.image, label=data.label)
    else:
        assert card is not None
        found = cards.reader(card.name).read(card.name, None if card.embedded else find_folder(card))
    if skip_bad:
        found = found.without_unreadable()
    return found.with_holdout(data.val, data.test), card


def _card(name: str) -> cards.ImageCard:
    card = cards.card(name)
    if not isinstance(card, cards.ImageCard):
        known = ", ".join(n for n in registry.datasets.names() if isinstance(cards.card(n), cards.ImageCard))
        raise InputError(f"{name} holds no images", f"Sets of images are {known}")
    return card


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Images as a model takes them; indexed by a position, or a position and a seed.

    Args:
        samples: the images.
        transform: for positions with a seed, where images are changed at random, or without.
    """

    def __init__(self, samples: Samples, transform: TrainTransform | EvalTransform):
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int]:
        position, *seed = item if isinstance(item, tuple) else (item,)
        return self.transform(self.samples.image(position), *seed), int(self.samples.labels[position])


def load_batches(
    images: TransformedImages, batches: Iterable[Tensor], workers: int, seed: tuple[int, int] | None = None
) -> Iterator[Batch]:
    """Decode and transform batch after batch.

    Args:
        batches: positions of each batch.
        workers: processes that do it; 0: this one.
        seed: of the run, and number of the epoch: what random transforms draw from; None for others.
    """
    keys: list[list[Any]] = [batch.tolist() for batch in batches]
    if seed is not None:
        draws = np.random.SeedSequence(seed).generate_state(len(images)) & 0x7FFFFFFF
        keys = [[(position, int(draws[position])) for position in batch] for batch in keys]
    generator = torch.Generator()  # otherwise the loader draws from the global one, and a resumed run differs
    yield from DataLoader(images, batch_sampler=keys, num_workers=workers, generator=generator)
