"""What is wrong with a configuration file, for whoever wrote it: msgspec's complaint in words, and what would have been right. Pure."""

from __future__ import annotations

import difflib
import re
from typing import Any, Final

from msgspec import inspect

from shared.configuration import shape

_AT: Final = r"at `\$\.(?P<at>[^`]+)`"
_UNKNOWN: Final = re.compile(
    rf"Object contains unknown field `(?P<key>.*?)`(?: - {_AT})?", re.DOTALL
)  # a key of TOML may hold anything
_NO_CHOICE: Final = re.compile(rf"Invalid enum value .* - {_AT}", re.DOTALL)
_WORDS: Final = (
    ("$.", ""),
    ("`$`", "the top level"),
    (" | null`", "`"),
    ("Object ", "The table "),
    ("`object`", "a table"),
    ("`array`", "a list"),
)
"""msgspec's, which are JSON's, and TOML's."""
_INDEX: Final = re.compile(r"\[[^]]*\]")


def explain(exc: Exception, type_: type[Any]) -> str:
    """The cause in words, when a document is not TOML, or not a `type_` (a msgspec.Struct)."""
    text = str(exc)
    if found := _UNKNOWN.fullmatch(text):
        instead = _instead(found["key"], _path(found), shape.top(type_))
        return f"{_readable(text)}; {instead}" if instead else _readable(text)
    if found := _NO_CHOICE.fullmatch(text):
        return f"{_readable(text)}{_choices(shape.find(shape.top(type_), _path(found)))}"
    return _readable(text)


def _readable(text: str) -> str:
    for theirs, ours in _WORDS:
        text = text.replace(theirs, ours)
    return text


def _path(found: re.Match[str]) -> list[str]:
    """The keys that lead to the table or value, without the numbers of a list's entries."""
    return _INDEX.sub("", found["at"] or "").split(".") if found["at"] else []


def _instead(key: str, path: list[str], top: inspect.StructType) -> str:
    """Which key was meant by `key`, which is none of the table at `path`: one that is written nearly so there, or the same in another
    table. (In TOML a key belongs to the last [table] that stands before it, so one of the top level easily gets into a table.) "": nobody
    can say."""
    table = shape.find(top, path)
    known = list(shape.fields(table)) if isinstance(table, inspect.StructType) else []
    if near := difflib.get_close_matches(key, known, n=1):
        return f"did you mean `{'.'.join([*path, *near])}`?"
    elsewhere = [each for each in shape.paths(top) if each.rpartition(".")[2] == key]
    if key in elsewhere:
        return f"`{key}` must stand before the first [table]"
    if elsewhere:
        return f"did you mean `{elsewhere[0]}`?"
    return f"it may have {', '.join(known)}" if known else ""


def _choices(type_: inspect.Type | None) -> str:
    """What would have been right, where there is a closed choice."""
    if isinstance(type_, inspect.EnumType):
        return f"; it may be {', '.join(type_.cls)}"
    if isinstance(type_, inspect.LiteralType):
        return f"; it may be {', '.join(map(str, type_.values))}"
    return ""
