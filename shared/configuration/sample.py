"""A configuration file in which every key is explained: what is set stands as it is, the rest commented out with its default. Pure.

    # The port on which agents are heard.
    # A whole number, 0 to 65535. Default: 9443.
    #port = 9443

Prose begins with "# ", what could be set with "#" alone: without that sign it can be used. A key that has no default that could be
written shows "…", which TOML refuses: it must be replaced by a value.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from shared.configuration import words
from shared.configuration.keys import Key, keys_of
from shared.errors import ConfigError
from shared.host.toml import is_tables, to_value

_WIDTH: Final = 100
_HEAD: Final = (
    "Every key is explained. What begins with # and no space is not set, and shows what holds instead. Remove the # to set it, also "
    "that before its [table]: a key belongs to the last table above it."
)


def sample(type_: type[msgspec.Struct], values: Mapping[str, Any]) -> str:
    """The file that sets `values` (as a file would: tables are mappings; paths, enums and Structs may stand as they are; None is not set).
    It is read as the same `type_` as the values alone. The same values give the same text.

    Raises ConfigError for a value that no file can say, LookupError for a key that `type_` does not have.
    """
    plain = msgspec.to_builtins(values, enc_hook=str)
    try:
        return _prose(_HEAD) + _table(keys_of(type_), plain, "")
    except UnicodeEncodeError as exc:
        raise ConfigError(
            f"The value {exc.object!r} cannot be written to a configuration file",
            cause="it is no Unicode text, as all of TOML is",
            action="Rename the file, or choose another value.",
        ) from exc


def _table(keys: tuple[Key, ...], values: Mapping[str, Any], prefix: str, *, told: bool = False) -> str:
    """The inside of a table. `told`: its keys were explained before, in another table of the same list."""
    if unknown := values.keys() - {key.name for key in keys}:
        raise LookupError(f"There is no key {prefix}{min(unknown)}")
    lines, tables = [], []
    for key in keys:
        value = values.get(key.name)
        if key.keys and (value is None or isinstance(value, Mapping) or is_tables(value)):
            tables.append(_tables(key, value, prefix, told=told))
        elif not told or value is not None:
            lines.append(("" if told else f"\n{_explained(key)}") + _assignment(key, value))
    return "".join(lines + tables)


def _tables(key: Key, value: Any, prefix: str, *, told: bool) -> str:
    """A table, or a list of tables, with what is in it."""
    if told and value is None:
        return ""
    name = f"[[{prefix}{key.name}]]" if key.is_list else f"[{prefix}{key.name}]"
    sign = "#" if value is None else ""
    text = "" if told else f"\n\n{_explained(key)}"
    for each in value if is_tables(value) else [value or {}]:
        text += f"\n{sign}{name}\n" if told else f"{sign}{name}\n"
        text += _table(key.keys, each, f"{prefix}{key.name}.", told=told)
        told = True
    return text


def _explained(key: Key) -> str:
    takes, default = words.takes(key), words.default(key)
    facts = [] if key.keys else [f"{takes[0].upper()}{takes[1:]}."]
    if key.required:
        facts.append("Required.")
    elif key.keys and default:
        facts.append("It may be left out.")
    elif default:
        facts.append(f"Default: {default}.")
    return _prose(key.explanation) + _prose(" ".join(facts))


def _assignment(key: Key, value: Any) -> str:
    if value is not None:
        return f"{key.name} = {to_value(value)}\n"
    return f"#{key.name} = {'…' if key.default is None else to_value(key.default)}\n"


def _prose(text: str) -> str:
    wrapped = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in wrapped)
