"""From a labelled set of images to batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from toolkit import registry
from toolkit.data import cards
from toolkit.data.cache import find_folder
from toolkit.data.images import ImageSet, Samples, read_images
from toolkit.data.transforms import EvalTransform, TrainTransform
from toolkit.errors import InputError
from toolkit.tasks.classify.config import DataConfig

SHOWN = 20  # classes in a message
UNREADABLE = "Remove it, or leave such images out with --skip-bad"
Batch = tuple[Tensor, Tensor]  # images float32 [B, 3, size, size], class numbers int64 [B]


def load_images(data: DataConfig, skip_bad: bool) -> tuple[ImageSet, cards.ImageCard | None]:
    """Read a set with the splits that it has.

    Returns:
        the set, and the card of a named one.

    Raises:
        InputError, DataNotFoundError: the images cannot be used.
    """
    if data.name is None and data.path is None:
        raise InputError("no data given", "Set data=NAME or data=FOLDER")
    card = _card(data.name) if data.name is not None else None
    if data.path is not None:
        found = read_images(data.path, image=data.image, label=data.label)
    else:
        assert card is not None
        found = cards.reader(card.name).read(card.name, None if card.embedded else find_folder(card))
    return (found.without_unreadable() if skip_bad else found), card


def measured_whole(data: ImageSet) -> ImageSet:
    """A set for a model that never saw any of it: its test images, else those for validation, else all count."""
    split = next((name for name in ("test", "val", "train") if len(data.splits.get(name, ()))), None)
    if split is None:
        raise InputError(f"{data.name} has no images")
    name = data.name if set(data.splits) == {split} else f"{data.name} ({split})"
    return replace(data, name=name, splits={**data.splits, "test": data.splits[split]})


def numbered(data: ImageSet, classes: Sequence[str], labels: Sequence[str] | None = None) -> ImageSet:
    """The same images with the class numbers of a trained model.

    Args:
        classes: the model's, in the order of its logits.
        labels: what people call them. A set may name its classes by these where they are unique, or all by number.

    Raises:
        InputError: a class that the model does not know.
    """
    occurrences = Counter(labels)
    number = {label: position for position, label in enumerate(labels or []) if occurrences[label] == 1}
    number |= {name: position for position, name in enumerate(classes)}
    if labels and set(data.classes) == {str(position) for position in range(len(classes))}:
        number = {str(position): position for position in range(len(classes))}
    if unknown := sorted(set(data.classes) - set(number)):
        pairs = zip(classes, labels or classes, strict=True)
        known = [name if label == name else f"{name} ({label})" for name, label in pairs]
        known = [*known[:3], f"{len(known) - 3} more"] if len(known) > SHOWN else known
        raise InputError(
            f"{data.name} has the class {unknown[0]!r}, the model knows {', '.join(known)}",
            "Evaluate on images of the classes that it was trained on",
        )
    numbers = np.array([number[name] for name in data.classes])
    splits = {split: replace(samples, labels=numbers[samples.labels]) for split, samples in data.splits.items()}
    return replace(data, classes=tuple(classes), splits=splits)


def _card(name: str) -> cards.ImageCard:
    card = cards.card(name)
    if not isinstance(card, cards.ImageCard):
        known = ", ".join(n for n in registry.datasets.names() if isinstance(cards.card(n), cards.ImageCard))
        raise InputError(f"{name} holds no images", f"Sets of images are {known}")
    return card


class TransformedImages(Dataset[tuple[Tensor, int] | InputError]):
    """Images as a model takes them; indexed by a position, or a position and a seed.

    Args:
        samples: the images.
        transform: for positions with a seed, where images are changed at random, or without.
    """

    def __init__(self, samples: Samples, transform: TrainTransform | EvalTransform):
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int] | InputError:
        """The image and its class; or, since an error that leaves a process of the loader is wrapped in another, it."""
        position, *seed = item if isinstance(item, tuple) else (item,)
        try:
            return self.transform(self.samples.image(position), *seed), int(self.samples.labels[position])
        except InputError as error:
            return InputError(str(error), UNREADABLE)


def load_batches(
    images: TransformedImages, batches: Iterable[Tensor], workers: int, seed: tuple[int, int] | None = None
) -> Iterator[Batch]:
    """Decode and transform batch after batch.

    Args:
        batches: positions of each batch.
        workers: processes that do it; 0: this one.
        seed: of the run, and number of the epoch: what random transforms draw from; None for others.

    Raises:
        InputError: an image cannot be read.
    """
    keys: list[list[Any]] = [batch.tolist() for batch in batches]
    if seed is not None:
        draws = np.random.SeedSequence(seed).generate_state(len(images)) & 0x7FFFFFFF
        keys = [[(position, int(draws[position])) for position in batch] for batch in keys]
    generator = torch.Generator()  # otherwise the loader draws from the global one, and a resumed run differs
    for batch in DataLoader(
        images, batch_sampler=keys, num_workers=workers, generator=generator, collate_fn=_batch_or_error
    ):
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _batch_or_error(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, InputError)), None) or default_collate(items)
