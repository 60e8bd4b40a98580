"""Of what a configuration is made, by its types: tables (msgspec Structs), lists of tables, and values. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import inspect

from shared import decoding


def top(type_: type[Any]) -> inspect.StructType:
    """The top level of the configuration `type_`, a msgspec.Struct."""
    info = decoding.type_info(type_)
    if not isinstance(info, inspect.StructType):
        raise TypeError(f"{type_.__name__} is no struct")
    return info


def without_none(type_: inspect.Type) -> inspect.Type:
    """`X` of `X | None`; any other type as it is."""
    if isinstance(type_, inspect.UnionType):
        left = [each for each in type_.types if not isinstance(each, inspect.NoneType)]
        return left[0] if len(left) == 1 else type_
    return type_


def is_list(type_: inspect.Type) -> bool:
    return isinstance(without_none(type_), inspect.ListType | inspect.VarTupleType)


def within(type_: inspect.Type) -> inspect.Type:
    """What a list is of, or what a value is when there is one."""
    type_ = without_none(type_)
    return type_.item_type if isinstance(type_, inspect.ListType | inspect.VarTupleType) else type_


def fields(table: inspect.StructType) -> dict[str, inspect.Field]:
    """By the names that stand in the file."""
    return {field.encode_name: field for field in table.fields}


def find(table: inspect.StructType, path: list[str]) -> inspect.Type | None:
    """What stands under a path of keys below `table`, which may lead through lists; None when nothing does."""
    found: inspect.Type = table
    for key in path:
        if not isinstance(found, inspect.StructType) or key not in fields(found):
            return None
        found = within(fields(found)[key].type)
    return found


def paths(table: inspect.StructType, prefix: str = "") -> Iterator[str]:
    """All keys below `table`, as `credit.window_b`."""
    for name, field in fields(table).items():
        yield f"{prefix}{name}"
        inner = within(field.type)
        if isinstance(inner, inspect.StructType):
            yield from paths(inner, f"{prefix}{name}.")
