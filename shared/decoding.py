"""Decodes documents into types, from any thread.

msgspec makes its description of a Struct, and of every type within, when a decoder for it is made, or when it is first decoded, converted
to or inspected. Other threads find it at the Struct while it is half made, and two that use a type for the first time at once end the
process (SIGSEGV, seen with a restore that opened segments in parallel; so in 0.22, the newest there is). So a description is made
here, under a lock, before anybody uses it, and nothing else in the project decodes, converts, inspects or makes a decoder (banned by name
in pyproject.toml). A decoder is whole once it is made: nothing is described later. Encoders describe nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import msgspec
from msgspec import inspect

T = TypeVar("T")
Data = bytes | bytearray | memoryview | str

_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_making = threading.Lock()


@overload
def decode(data: Data, *, type: type[T]) -> T: ...


@overload
def decode(data: Data, *, type: Any) -> Any: ...


def decode(data: Data, *, type: Any) -> Any:
    """`msgspec.json.decode`, and what that raises."""
    return _decoder(type).decode(data)


@overload
def convert(
    found: Any,
    type: type[T],
    *,
    strict: bool = True,
    dec_hook: Callable[[Any, Any], Any] | None = None,
) -> T: ...


@overload
def convert(
    found: Any, type: Any, *, strict: bool = True, dec_hook: Callable[[Any, Any], Any] | None = None
) -> Any: ...


def convert(
    found: Any, type: Any, *, strict: bool = True, dec_hook: Callable[[Any, Any], Any] | None = None
) -> Any:
    """`msgspec.convert`, and what that raises."""
    _decoder(type)
    return msgspec.convert(found, type, strict=strict, dec_hook=dec_hook)


def json_decoder(type: Any) -> msgspec.json.Decoder[Any]:
    """One that is the caller's."""
    _decoder(type)
    return msgspec.json.Decoder(type)


def msgpack_decoder(type: Any) -> msgspec.msgpack.Decoder[Any]:
    _decoder(type)
    return msgspec.msgpack.Decoder(type)


def type_info(type: Any) -> inspect.Type:
    """`msgspec.inspect.type_info`, which makes a decoder."""
    _decoder(type)
    return inspect.type_info(type)


def schema_components(
    types: Sequence[Any], ref_template: str
) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """`msgspec.json.schema_components`: a JSON schema of each type, and the named ones that they refer to."""
    for type_ in types:
        _decoder(type_)
    return msgspec.json.schema_components(types, ref_template=ref_template)


def _decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    decoder = _decoders.get(type_)
    if decoder is None:
        with _making:
            decoder = _decoders.get(type_)
            if decoder is None:
                decoder = _decoders[type_] = msgspec.json.Decoder(type_)
    return decoder
