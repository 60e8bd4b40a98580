"""All keys of a configuration as a table of Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from shared.configuration import words
from shared.configuration.keys import Key, keys_of

_HEAD = "| key | takes | default | |\n|---|---|---|---|\n"


def table(type_: type[msgspec.Struct]) -> str:
    """A row for each key of the configuration `type_`, those of its tables as `credit.window_b`. Raises LookupError for a key that is not
    explained."""
    return _HEAD + "".join(_rows(keys_of(type_), ""))


def _rows(keys: tuple[Key, ...], prefix: str) -> Iterator[str]:
    for key in keys:
        name = f"{prefix}{key.name}"
        shown = f"[[{name}]]" if key.keys and key.is_list else name
        yield f"| {' | '.join(map(_cell, (f'`{shown}`', words.takes(key), words.default(key), key.explanation)))} |\n"
        yield from _rows(key.keys, f"{name}.")


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
