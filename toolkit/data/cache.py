"""Files of named data sets: where they are looked for, how they are verified and downloaded.

In order: the path given, ``$TOOLKIT_DATA`` (the user's own folder, only read), the cache (``$TOOLKIT_CACHE``, else
``$XDG_CACHE_HOME/toolkit``, else ``~/.cache/toolkit``), and a download if asked for. Only the cache is written.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from toolkit.data.cards import Card, File
from toolkit.data.sources import read_chunks
from toolkit.errors import DataNotFoundError, InputError

_log = logging.getLogger(__name__)
_digests: dict[tuple[str, int, int], str] = {}


def cache_dir() -> Path:
    """The folder that the toolkit writes data and weights to; it need not exist."""
    if own := os.environ.get("TOOLKIT_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "toolkit"
    return Path.home() / ".cache" / "toolkit"


def user_dir() -> Path | None:
    """The user's own data folder, ``$TOOLKIT_DATA``."""
    own = os.environ.get("TOOLKIT_DATA")
    return Path(own).expanduser() if own else None


def is_offline() -> bool:
    """Whether ``TOOLKIT_OFFLINE`` or ``HF_HUB_OFFLINE`` forbids the network."""
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false", "no")
        for name in ("TOOLKIT_OFFLINE", "HF_HUB_OFFLINE")
    )


def sha256(path: Path) -> str:
    """Hash of the uncompressed bytes, remembered in this process for as long as size and time stay."""
    state = path.stat()
    key = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    if key not in _digests:
        digest = hashlib.sha256()
        for chunk in read_chunks(path):
            digest.update(chunk)
        _digests[key] = digest.hexdigest()
    return _digests[key]


def verify(card: Card, file: str, path: Path) -> bool:
    """Compare a file with its card.

    Returns:
        True if a checksum matches, False if the card knows none.

    Raises:
        DataNotFoundError: the file is another one, or is damaged.
    """
    expected = card.files[file].sha256
    if not expected:
        _log.info("%s: no checksum is known for %s, it is used unchecked", card.name, path)
        return False
    try:
        actual = sha256(path)
    except InputError as error:
        raise DataNotFoundError(f"{card.name}: {error}") from error
    if actual not in expected:
        raise DataNotFoundError(
            f"{card.name}: {path} is not the expected file: sha256 {actual} instead of {' or '.join(expected)}",
            f"Remove it and fetch it again (toolkit data get {card.name}), "
            f"or use it as it is: data.name={card.name} data.path={path}",
        )
    return True


def search_folders(card: Card) -> list[Path]:
    """Folders that may hold the card's files, in the order in which they are searched."""
    if card.embedded:
        return [card.package]
    names = (card.family, *card.folders)
    user = user_dir()
    return [user / name for name in names if user] + [cache_dir() / "data" / card.family]


def locate(card: Card, file: str | None = None) -> Path | None:
    """The first match of a file, plain or ``.gz``, unverified; None if it is nowhere."""
    file = file or card.file
    candidates = (folder / name for folder in search_folders(card) for name in (file, f"{file}.gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def find(card: Card, file: str | None = None, *, path: str | Path | None = None, download: bool = False) -> Path:
    """The path of a data set's file, verified.

    Args:
        file: which of the card's files; the first by default.
        path: the user's own file in its place, taken as it is.
        download: whether it may be fetched.

    Raises:
        DataNotFoundError: nowhere found, or of another checksum.
        InputError: ``path`` does not exist, or the cache cannot be written.
    """
    if path is not None:
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
        return path
    file = file or card.file
    found = locate(card, file)
    if found is None and download:
        found = _download(card, file)
    if found is None:
        raise _not_found(card, file)
    verify(card, file, found)
    return found


def find_folder(card: Card, pattern: str = "*.parquet") -> Path:
    """The first searched folder with files of a pattern; those that the card knows are verified.

    Raises:
        DataNotFoundError: there is none, or a known file has another checksum.
    """
    for folder in search_folders(card):
        if any(folder.glob(pattern)):
            for file in card.files:
                if (folder / file).is_file():
                    verify(card, file, folder / file)
            return folder
    looked = ", ".join(map(str, search_folders(card)))
    raise DataNotFoundError(
        f"{card.name}: no {pattern} found (looked in {looked})",
        f"{card.obtain} and put the files into $TOOLKIT_DATA/{card.name}/, or give the folder as --data",
    )


def _not_found(card: Card, file: str) -> DataNotFoundError:
    looked = ", ".join(map(str, search_folders(card)))
    if not card.embedded and user_dir() is None:
        looked = f"$TOOLKIT_DATA (not set), {looked}"
    get = (
        f"Get it with: toolkit data get {card.name}"
        if card.files[file].url
        else f"{card.obtain} and put it at $TOOLKIT_DATA/{card.family}/{file}"
    )
    return DataNotFoundError(f"{card.name}: {file} not found (looked in {looked})", get)


def _download(card: Card, file: str) -> Path | None:
    """Fetch a file into the cache, once among all processes; None if the card has no link."""
    known: File = card.files[file]
    if known.url is None:
        return None
    if is_offline():
        raise DataNotFoundError(
            f"{card.name}: {file} is not on this machine and TOOLKIT_OFFLINE or HF_HUB_OFFLINE forbids its download",
            f"Unset it, or put the file at $TOOLKIT_DATA/{card.family}/{file}",
        )
    import pooch
    from filelock import FileLock

    folder = cache_dir() / "data" / card.family
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{file}.lock"):
            if (folder / file).is_file():  # another process fetched it meanwhile
                return folder / file
            # pooch writes beside the target, checks the hash and renames
            hashed = f"sha256:{known.sha256[0]}" if known.sha256 else None
            pooch.retrieve(known.url, hashed, fname=file, path=folder)
            return folder / file
    except ValueError as error:  # pooch's word for a wrong hash
        raise DataNotFoundError(f"{card.name}: {known.url} does not hold the expected file: {_line(error)}") from error
    except OSError as error:  # requests' errors are OSErrors too
        if getattr(error, "errno", None) is not None and not hasattr(error, "request"):
            raise InputError(f"cannot write to {folder}: {error.strerror}", "Set TOOLKIT_CACHE to another") from error
        raise DataNotFoundError(f"{card.name}: download of {known.url} failed: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
