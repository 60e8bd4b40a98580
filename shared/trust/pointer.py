"""Where the config server is now: what storage says of it, signed by the installation's CA, and what a daemon keeps of that.

    <vault container>/control/pointer.json    {"pointer": the document as JSON text, "signature": by the CA, base64}; compare-and-swap

The config server that is in force writes it, when it takes over and when its names change (config_server/recovery/pointing.py). A process
server or master target reads it every minute: its own config server may answer, and not know that another is in force, since it does not
reach storage. Process servers hand it to agents in WELCOME. Whoever takes one keeps it beside his certificate (`config-server.json`) and
goes there from then on; where nobody answers there, he tries the names by turns, and that of his configuration as well.

Nobody but the CA can write one, so it may come from anybody, and late. An older one is none: the highest generation counts, and of that the
last; nor is one of a lower generation than a config server has said itself that it is in force with. What an administrator has said since
counts more: one that was taken while the configuration named another `control_url` is forgotten, and is no news, nor is any before it.

While the CA is renewed a daemon has two anchors, and either may have signed it. The one in storage is signed anew at the switch, before the
old anchor goes; so who may read storage looks there once more when it goes (control_client.py), and hands that on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography import x509

from shared import decoding
from shared.daemon import logging
from shared.errors import UNDECODABLE, ConfigError, cause_of
from shared.host import durable
from shared.naming import is_server_url
from shared.trust import anchors

_log = logging.get()

BLOB: Final = "control/pointer.json"
MOST_B: Final = 2048
FILE: Final = "config-server.json"
"""Beside the certificate."""
_SIGNED: Final = b"understudy pointer\0"
_MOST_URLS: Final = 8


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    generation: Annotated[int, msgspec.Meta(ge=1)]
    urls: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=_MOST_URLS)]
    """As a `control_url`; the first is tried first."""
    made_ns: int
    """By the config server's clock: of two of one generation the later one counts."""


class _Signed(msgspec.Struct, frozen=True):
    pointer: str
    signature: bytes


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    v: int = 1
    over: str
    """The `control_url` of the configuration when it was taken."""
    signed: str
    in_force: int = 0
    """The highest generation that a config server has said it is in force with."""


def statement(pointer: Pointer) -> bytes:
    """What the CA signs."""
    return _SIGNED + msgspec.json.encode(pointer)


def encoded(pointer: Pointer, signature: bytes) -> bytes:
    return msgspec.json.encode(_Signed(msgspec.json.encode(pointer).decode(), signature))


def opened(data: bytes, ca: Path) -> Pointer | None:
    """None for what none of the CA's certificates (PEM) has signed, or what this version does not understand. Raises ConfigError."""
    return opened_by(data, anchors.of_file(ca))


def opened_by(data: bytes, trusted: Sequence[x509.Certificate]) -> Pointer | None:
    """As `opened`."""
    try:
        signed = decoding.decode(data[: MOST_B + 1], type=_Signed)
        pointer = decoding.decode(signed.pointer, type=Pointer)
    except UNDECODABLE:
        return None
    if pointer.v != 1 or not all(is_server_url(url) for url in pointer.urls):
        return None
    said = _SIGNED + signed.pointer.encode()
    return pointer if anchors.have_signed(trusted, said, signed.signature) else None


class Whereabouts:
    """Of a daemon's config server. `configured`: its `control_url`; `cert`, `ca`: its own certificate and the CA's."""

    def __init__(
        self, configured: str, cert: Path, ca: Path, on_news: Callable[[bytes], None] = lambda _signed: None
    ) -> None:
        """`on_news` is called with each that is taken, if `url` is another one by it."""
        self._on_news: Final = on_news
        self.on_taken: Callable[[bytes], None] = lambda _signed: None
        """Is called with each that is taken, also where `url` stays."""
        self._configured: Final = configured
        self._file: Final = cert.with_name(FILE)
        self._ca: Final = ca
        self._at = 0
        self._past: Pointer | None = None
        """What was taken before the configuration named another one."""
        self._in_force = 0
        self.pointer: Pointer | None = None
        self.signed = b""
        """It, as it is handed on."""

    @property
    def url(self) -> str:
        return self._urls[self._at]

    @property
    def _urls(self) -> list[str]:
        named = () if self.pointer is None else self.pointer.urls
        return [*dict.fromkeys(url.rstrip("/") for url in (*named, self._configured))]

    def load(self) -> None:
        """What an earlier run kept, unless the configuration says something else since. What cannot be read is as if it were not there: it
        is in storage."""
        try:
            kept = decoding.decode(self._file.read_bytes(), type=_Kept)
            pointer = opened(kept.signed.encode(), self._ca)
        except FileNotFoundError:
            return
        except (OSError, ConfigError, *UNDECODABLE) as exc:
            _log.warning("where the config server is cannot be read", file=str(self._file), cause=str(exc))
            return
        self._in_force = kept.in_force
        if pointer is None:
            return
        if kept.over == self._configured:
            self.pointer, self.signed = pointer, kept.signed.encode()
        else:
            self._past = pointer

    def hear(self, generation: int) -> None:
        """A config server says that it is in force with this generation; 0: it does not know."""
        self._in_force = max(self._in_force, generation)

    async def take(self, data: bytes) -> bool:
        """Whether it is news: then `url` is another one, perhaps. What is not signed by the CA, or older, is not."""
        if not data or data == self.signed:
            return False
        try:
            pointer = opened(data, self._ca)
        except ConfigError as exc:
            _log.warning("where the config server is could not be checked", **exc.as_dict())
            return False
        if pointer is None or pointer.generation < self._in_force:
            return False
        if any(
            before is not None and _order(pointer) <= _order(before) for before in (self.pointer, self._past)
        ):
            return False
        was = self.url
        self.pointer, self.signed, self._at = pointer, data, 0
        self.on_taken(data)
        if self.url != was:
            _log.info("the config server is elsewhere now", url=self.url, generation=pointer.generation)
            self._on_news(data)
        try:
            kept = _Kept(over=self._configured, signed=data.decode(), in_force=self._in_force)
            await asyncio.to_thread(durable.replace_file, self._file, msgspec.json.encode(kept), mode=0o600)
        except OSError as exc:  # in force all the same, and in storage for the next start
            _log.warning("where the config server is was not kept", file=str(self._file), cause=cause_of(exc))
        return True

    def next(self) -> None:
        """Nobody answers there: the next name, if there are several."""
        self._at = (self._at + 1) % len(self._urls)


def _order(pointer: Pointer) -> tuple[int, int]:
    return pointer.generation, pointer.made_ns
