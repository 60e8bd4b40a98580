"""Writing TOML; reading is the standard library's `tomllib`."""

from __future__ import annotations

from typing import Any

import msgspec


def to_toml(content: dict[str, Any], *, prefix: str = "") -> str:
    """Plain values and tables as TOML; what is None is left out. Keys are plain words.

    JSON's strings, numbers and arrays are TOML's too, except that TOML wants DEL escaped.
    """
    lines, tables = [], []
    for key, value in content.items():
        if isinstance(value, dict):
            tables.append(f"\n[{prefix}{key}]\n{to_toml(value, prefix=f'{prefix}{key}.')}")
        elif value is not None:
            lines.append(f"{key} = {msgspec.json.encode(value).decode()}\n".replace("\x7f", "\\u007f"))
    return "".join(lines + tables)
