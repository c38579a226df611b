"""Keys of a task's configuration on the command line: ``key=value``, ``--key value``, ``--key``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from toolkit.config import Layer, parse_override
from toolkit.errors import InputError


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words that a command did not know, as plain arguments and as ``key=value`` settings.

    ``--key value`` is ``key=value``; ``--key`` followed by another option, by a setting or by nothing is ``key=true``.
    """
    plain, settings = [], []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if word.startswith("--"):
            if "=" not in word:
                takes_value = bool(remaining) and not remaining[0].startswith("--") and not _is_setting(remaining[0])
                word = f"{word}={remaining.pop(0) if takes_value else 'true'}"
            settings.append(word)
        elif word.startswith("-") and len(word) > 1:
            raise InputError(f"unknown option {word!r}")
        elif _is_setting(word):
            settings.append(word)
        else:
            plain.append(word)
    return plain, settings


def merge_settings(settings: Sequence[str], task: str) -> Layer:
    """``key=value`` settings as one nested layer over a task's configuration."""
    from toolkit import registry

    config = registry.tasks.load(task).Config
    layer: Layer = {}
    for parsed in _parsed(settings):
        layer = config.combine(layer, parsed)
    return layer


def only_settings(words: Sequence[str], task: str) -> Layer:
    """Like ``merge_settings`` for commands that take no further plain arguments."""
    plain, settings = split_words(words)
    if plain:
        raise InputError(f"unexpected argument {plain[0]!r}", "Settings are written key=value or --key value")
    return merge_settings(settings, task)


def plain_settings(words: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words as a flat dictionary, for commands without a task."""
    plain, settings = split_words(words)
    if plain:
        raise InputError(f"unexpected argument {plain[0]!r}", "Sizes are written key=value, for example n_heads=8")
    flat = {key: value for parsed in _parsed(settings) for key, value in parsed.items()}
    for key, value in flat.items():
        if isinstance(value, bool):
            raise InputError(f"{key} needs a number", f"Write {key}=8")
    return flat


def _parsed(settings: Sequence[str]) -> Iterator[Layer]:
    return (parse_override(setting) for setting in settings)


def _is_setting(word: str) -> bool:
    return re.match(r"[A-Za-z_][\w.-]*=", word) is not None
