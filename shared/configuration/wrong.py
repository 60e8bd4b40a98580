"""What is wrong with a configuration file, for whoever wrote it: msgspec's complaint in words, and what would have been right. Pure."""

from __future__ import annotations

import re
from typing import Any

from msgspec import inspect

from shared import decoding


def explain(exc: Exception, type_: type[Any]) -> str:
    """The cause in words, when a document is not TOML, or not a `type_` (a msgspec.Struct)."""
    return _readable(exc) + _choices(exc, type_)


def _readable(exc: Exception) -> str:
    # msgspec calls the document "$" and says "Object" for a table; TOML users know neither.
    return str(exc).replace("$.", "").replace("Object ", "The table ").replace("`$`", "the top level")


def _choices(exc: Exception, type_: type[Any]) -> str:
    """What would have been right instead of the value that `exc` complains about, where there is a closed choice."""
    found = re.fullmatch(r"Invalid enum value .* - at `\$\.([\w.]+)`", str(exc))
    if found is None:
        return ""
    at = [decoding.type_info(type_)]
    for key in found[1].split("."):
        tables = [option for option in at if isinstance(option, inspect.StructType)]
        fields = {field.encode_name: field.type for table in tables for field in table.fields}
        type_info = fields.get(key)
        at = (
            list(type_info.types)
            if isinstance(type_info, inspect.UnionType)
            else [type_info]
            if type_info
            else []
        )
    for option in at:
        if isinstance(option, inspect.EnumType):
            return f"; it may be {', '.join(option.cls)}"
        if isinstance(option, inspect.LiteralType):
            return f"; it may be {', '.join(map(str, option.values))}"
    return ""
