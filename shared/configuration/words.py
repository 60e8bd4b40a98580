"""A key of a configuration in words: what it takes, and what it is when nothing is set. Pure.

The last part of a key's name says its unit (`spool_b`, `poll_s`, `grant_hours`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from msgspec import inspect as types

from shared.configuration.keys import Key

_UNITS: Final = {
    "b": "bytes",
    "bytes": "bytes",
    "mib": "MiB",
    "s": "seconds",
    "seconds": "seconds",
    "hours": "hours",
    "days": "days",
}
"""The last part of a name → what its number counts."""
_SHORT: Final = {"seconds": "s", "hours": "h", "bytes": "B"}
_LARGER: Final = {
    "bytes": (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)),
    "seconds": (("days", 86_400), ("h", 3600), ("min", 60)),
    "hours": (("days", 24),),
}
"""A unit → larger ones, and how many of it they hold."""


def takes(key: Key) -> str:
    """What may be set, with its bounds: "bytes, 4 KiB to 4 GiB"; "`debug`, `info`, `warning` or `error`"; "a table"."""
    if key.keys:
        return "tables" if key.is_list else "a table"
    what = _type(key)
    return ", ".join([f"a list of {what}" if key.is_list else what, *_bounds(key)])


def default(key: Key) -> str:
    """What holds when nothing is set: "32 MiB", "none", "`info`"; "" for a table that always is there: its keys have theirs."""
    if key.required:
        return "required"
    if key.default is None or (isinstance(key.default, Sequence) and not key.default):
        return "none"
    if key.keys and not key.is_list:
        return ""
    return quantity(key, key.default)


def quantity(key: Key, value: Any) -> str:
    """A value of this key as people say it: "32 MiB", "24 h", "`page-blob`"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return _number(value, _unit(key))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(quantity(key, each) for each in value)
    return f"`{value}`"


def _unit(key: Key) -> str:
    return _UNITS.get(key.name.rpartition("_")[2], "")


def _type(key: Key) -> str:
    inner = key.type.item_type if isinstance(key.type, types.ListType | types.VarTupleType) else key.type
    match inner:
        case types.BoolType():
            return "`true` or `false`"
        case types.IntType():
            return _unit(key) or "a whole number"
        case types.FloatType():
            return _unit(key) or "a number"
        case types.StrType():
            return "text"
        case types.EnumType():
            return _either([str(each.value) for each in inner.cls])
        case types.LiteralType():
            # msgspec gives them in the order of the alphabet.
            return _either([str(each) for each in inner.values])
        case types.CustomType() if inner.cls.__name__ == "Path":
            return "a path"
    raise TypeError(f"{key.name}: there are no words for {inner}")


def _either(choices: list[str]) -> str:
    *others, last = [f"`{each}`" for each in choices]
    return f"{', '.join(others)} or {last}" if others else last


def _bounds(key: Key) -> list[str]:
    type_ = key.type
    if not isinstance(type_, types.IntType | types.FloatType):
        return []
    ge, le, gt, lt = (
        None if bound is None else _number(bound, _unit(key))
        for bound in (type_.ge, type_.le, type_.gt, type_.lt)
    )
    if ge and le:
        return [f"{ge} to {le}"]
    words = (("at least", ge), ("more than", gt), ("at most", le), ("less than", lt))
    return [f"{word} {bound}" for word, bound in words if bound]


def _number(value: float, unit: str) -> str:
    if not value:
        return "0"
    for name, size in _LARGER.get(unit, ()):
        if value >= (2 * size if name == "days" else size) and value % size == 0:  # one day is 24 h
            return f"{value // size:.0f} {name}"
    exact = f"{value:.0f}" if value == int(value) else f"{value:g}"
    return f"{exact} {_SHORT.get(unit, unit)}".rstrip()
