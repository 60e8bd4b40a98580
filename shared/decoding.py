"""Decodes documents into types, from any thread.

msgspec makes its description of a Struct when the type is first decoded, and other threads see it half made: two that decode a type for
the first time at once end the process (SIGSEGV, seen with a restore that opened segments in parallel). So a description is made
here, under a lock, before anybody uses it, and nothing else in the project decodes or converts to a type. Decoders that a module makes
when it is imported are as good.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar, overload

import msgspec

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


def _decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    decoder = _decoders.get(type_)
    if decoder is None:
        with _making:
            decoder = _decoders.get(type_)
            if decoder is None:
                decoder = _decoders[type_] = msgspec.json.Decoder(type_)
    return decoder
