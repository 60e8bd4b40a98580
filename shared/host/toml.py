"""Writing TOML; reading is the standard library's `tomllib`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


def to_toml(content: Mapping[str, Any], *, prefix: str = "") -> str:
    """Values, tables and lists of tables as TOML; what is None is left out. Keys are plain words. Raises UnicodeEncodeError for text that
    is not Unicode, as names of files may be."""
    lines, tables = [], []
    for key, value in content.items():
        if isinstance(value, Mapping):
            tables.append(f"\n[{prefix}{key}]\n{to_toml(value, prefix=f'{prefix}{key}.')}")
        elif is_tables(value):
            tables += [f"\n[[{prefix}{key}]]\n{to_toml(each, prefix=f'{prefix}{key}.')}" for each in value]
        elif value is not None:
            lines.append(f"{key} = {to_value(value)}\n")
    return "".join(lines + tables)


def is_tables(value: Any) -> bool:
    """Whether it is written as `[[key]]`. (A list of none is written as a value.)"""
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Mapping) for each in value)
    )


def to_value(value: Any) -> str:
    """What stands behind "key = "."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(to_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    # JSON's strings, integers and booleans are TOML's too, except that TOML wants DEL escaped.
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
