"""Data set cards: what a set is, where its files come from, and under which licence."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from pydantic import BaseModel, ConfigDict

from toolkit import registry


class File(BaseModel):
    """One file of a data set.

    Attributes:
        sha256: of the uncompressed bytes, one for each edition that counts as the set; empty where none is known.
        bytes: uncompressed size.
        url: direct link to the first edition, uncompressed, at its official home.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: tuple[str, ...] = ()
    bytes: int | None = None
    url: str | None = None


class Card(BaseModel):
    """A named data set. A module of ``datasets/`` holds cards as a literal, ``CARDS = {name: {...}}``.

    Attributes:
        name: as users type it.
        family: name of the module and of the folder that holds the files.
        package: folder of the module, which holds embedded files.
        tasks: tasks that can use the set.
        licence: short; what follows from it stands in ``notes``.
        notes: quirks of the files, consequences of the licence.
        obtain: what to fetch from where, for sets without a direct link.
        files: by name.
        folders: other names of the folder, as popular downloads call it.
        embedded: the files come with the toolkit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    package: Path
    title: str
    tasks: tuple[str, ...]
    licence: str
    homepage: str
    citation: str
    notes: tuple[str, ...] = ()
    obtain: str = ""
    files: dict[str, File]
    folders: tuple[str, ...] = ()
    embedded: bool = False

    @property
    def file(self) -> str:
        """The name of the first file, the only one of most sets."""
        return next(iter(self.files))


class TableCard(Card):
    """A table of numbers over time.

    Attributes:
        rows: rows as read.
        columns: number of variates.
        freq: step between rows as a pandas alias.
        split: rule of the train, validation and test borders.
        season: rows in the natural season.
    """

    tasks: tuple[str, ...] = ("forecast",)
    rows: int
    columns: int
    freq: str
    split: str
    season: int


class ImageCard(Card):
    """Labelled images.

    Attributes:
        images: their number by split.
        classes: number of classes.
        size: height and width.
        mean, std: channel statistics of the training images, of values in [0, 1].
    """

    tasks: tuple[str, ...] = ("classify",)
    images: dict[str, int]
    classes: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def card(name: str) -> Card:
    """The card of a named set, matched without regard to case: a ``TableCard`` or an ``ImageCard``.

    Raises:
        InputError: unknown name; the message offers the nearest ones.
    """
    entry = registry.datasets.entry(name)
    module: ModuleType = entry.load()
    path, literal = Path(module.__file__ or ""), module.CARDS[entry.name]
    kind = ImageCard if "images" in literal else TableCard
    return kind(name=entry.name, family=path.stem, package=path.parent, **literal)


def reader(name: str) -> ModuleType:
    """The module of a named set, whose ``read(name, path, **options)`` reads its file."""
    return registry.datasets.load(name)
