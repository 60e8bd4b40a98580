"""The keys of a configuration, each with its type, default and explanation, from the code that reads it. Pure.

A configuration is a msgspec.Struct. The explanation of a key is the docstring below its field, for whoever sets it:

    class Server(msgspec.Struct):
        port: Annotated[int, msgspec.Meta(ge=1)] = 443
        \"""The port on which it is reached.\"""

Python keeps no such docstrings, so they are read from the source.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from typing import Any

import msgspec
from msgspec import inspect as types

from shared.configuration import shape


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key of a table."""

    name: str
    """As it stands in the file, in its table."""
    type: types.Type
    """Of its value, when there is one."""
    required: bool
    default: Any = None
    """As a file would say it, None where it would say nothing; of a table its keys tell."""
    explanation: str
    """One paragraph."""
    keys: tuple[Key, ...] = ()
    """Of a table, or of each table of a list: its keys, in the order of the code."""

    @property
    def is_list(self) -> bool:
        return shape.is_list(self.type)


def keys_of(type_: type[msgspec.Struct]) -> tuple[Key, ...]:
    """All keys of the configuration `type_`, in the order of the code. Raises LookupError for one that is not explained; ValueError for a
    table of which other values hold when it is left out than when it is empty: no key could say so. OSError where the source is not there.
    """
    return _keys(shape.top(type_))


def _keys(table: types.StructType) -> tuple[Key, ...]:
    explanations = _explanations(table.cls)
    found = []
    for field in table.fields:
        if field.name not in explanations:
            raise LookupError(f"{table.cls.__qualname__}.{field.name} is not explained: it has no docstring")
        default = _default(field)
        inner = shape.within(field.type)
        if isinstance(default, msgspec.Struct) and default != type(default)():
            raise ValueError(f"{table.cls.__qualname__}.{field.name} is not the default of its keys")
        found.append(
            Key(
                name=field.encode_name,
                type=shape.without_none(field.type),
                required=field.required,
                default=msgspec.to_builtins(default, enc_hook=str),
                explanation=explanations[field.name],
                keys=_keys(inner) if isinstance(inner, types.StructType) else (),
            )
        )
    return tuple(found)


def _default(field: types.Field) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return None if field.default is msgspec.NODEFAULT else field.default


@functools.cache  # looking for a class in its file takes milliseconds
def _explanations(struct: type[Any]) -> dict[str, str]:
    """Field → the docstring below it, as one line; those of a class that it extends, too."""
    found: dict[str, str] = {}
    for each in reversed(struct.__mro__):
        if not issubclass(each, msgspec.Struct) or each is msgspec.Struct:
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for above, below in itertools.pairwise(definition.body):
            match above, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
