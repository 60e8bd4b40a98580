"""The client of the config server's REST API: typed calls over the routes of shared/api/, whose request's and answer's types come
from the route.

Every failure is an UnderstudyError: the server's own errors arrive as the class that was raised there, with
its words; what goes wrong on the way becomes a PeerError. Nothing is retried here. What daemons use over it is
shared/control/control_client.py.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from shared import api, decoding
from shared.api.route import Failure, Nothing
from shared.errors import UNDECODABLE, PeerError, UnderstudyError, UnreachableError
from shared.http import clock_evidence
from shared.http.connector import TlsConnector
from shared.trust import tls

_Q = TypeVar("_Q", bound=msgspec.Struct)
_R = TypeVar("_R", bound=msgspec.Struct)

_TIMEOUT_S: Final = 15.0
MAX_ANSWER_B: Final = 256 << 20
"""Larger answers are not read on: of thousands of machines each with its problems there are tens of megabytes."""


class RestClient:
    """Typed calls to one config server. `token` is the operator token; a daemon's certificate is in
    `context`.

    An async context manager; `close` when done. Calls may run concurrently.
    """

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext,
        *,
        token: str = "",
        timeout_s: float = _TIMEOUT_S,
        max_answer_b: int = MAX_ANSWER_B,
    ) -> None:
        self.url = url.rstrip("/")
        self._context = context
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s
        self._max_answer_b = max_answer_b
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self,
        route: api.Route[_Q, _R],
        body: _Q | None = None,
        /,
        *,
        wait_s: float = 0.0,
        version: str | None = None,
        key: str = "",
        **path: str,
    ) -> _R:
        """Call `route`; `path` fills in the names in its path. For GET the body's fields become the query
        string. `wait_s` > 0: the server may hold its answer so long, until there is something to say. `version`: that which is
        changed, as it was read; empty: there is none; "*": whatever it is. `key`: of the request, so that it begins once what it begins.

        Raises the UnderstudyError that the server answered with, or a PeerError when it could not be asked.
        """
        plain = None if body is None or isinstance(body, Nothing) else msgspec.to_builtins(body)
        return await self.call_plain(route, plain, path, wait_s, version=version, key=key)

    async def call_plain(
        self,
        route: api.Route[_Q, _R],
        body: Mapping[str, Any] | None,
        path: Mapping[str, str],
        wait_s: float,
        decode: Callable[[bytes], _R] | None = None,
        version: str | None = None,
        key: str = "",
    ) -> _R:
        """Like `call`, with a body of plain JSON values. `decode`: reads the answer, in place of the route's type."""
        url = self.url + route.path.format(**{name: quote(value, safe="") for name, value in path.items()})
        what = f"The call '{route.name}' to the config server {self.url} failed"
        query, data = {}, None
        if route.method == "GET":
            query = {name: _query_value(value) for name, value in (body or {}).items()}
        elif body is not None:
            data = msgspec.json.encode(body)
        headers = {"Prefer": f"wait={wait_s:g}"} if wait_s > 0 else {}
        if key:
            headers["Idempotency-Key"] = key
        if version is not None:
            name = "If-Match" if version else "If-None-Match"
            headers[name] = "*" if version in ("", "*") else f'"{version}"'
        async with (
            _translated(what),
            self._open().request(
                route.method,
                url,
                params=query,
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self._timeout_s + wait_s),
                # The API redirects nobody: who answers so would have secrets carried to another place.
                allow_redirects=False,
            ) as answer,
        ):
            content = await self._content(answer, what)
            status = answer.status
        if status >= 300:
            raise _failure(content, status, what)
        try:
            return decoding.decode(content, type=route.response) if decode is None else decode(content)
        except UNDECODABLE as exc:
            raise PeerError(what, cause=f"its answer is not what this version expects: {exc}") from exc

    async def _content(self, answer: aiohttp.ClientResponse, what: str) -> bytes:
        """The answer's body as it is: nothing is unpacked, and of one that does not end the beginning is enough. Raises PeerError."""
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise PeerError(what, cause="its answer is compressed, which nobody asked for")
        content = bytearray()
        async for part in answer.content.iter_any():
            content += part
            if len(content) > self._max_answer_b:
                raise PeerError(what, cause=f"its answer is longer than {self._max_answer_b} bytes")
        return bytes(content)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = TlsConnector(self._context, 8)
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **self._headers}
            self._session = aiohttp.ClientSession(connector=connector, headers=headers, auto_decompress=False)
        return self._session


@contextlib.asynccontextmanager
async def _translated(what: str) -> AsyncIterator[None]:
    """aiohttp's and the operating system's errors as PeerErrors."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as exc:
        raise await clock_evidence.told(
            exc.certificate_error, what, exc.host, exc.port or 443, web=True
        ) from exc
    except aiohttp.ServerDisconnectedError as exc:
        raise UnreachableError(what, cause=tls.CUT) from exc
    except aiohttp.ClientError as exc:
        raise tls.translate(_root_cause(exc), what) from exc
    except (OSError, TimeoutError) as exc:
        raise tls.translate(exc, what) from exc
    except ValueError as exc:  # a host that no resolver takes is found only here
        raise PeerError(what, cause=f"its URL or its answer is not what HTTP allows: {exc}") from exc


def _root_cause(exc: BaseException) -> BaseException:
    """The ssl or OS error inside aiohttp's, when there is one."""
    if (
        isinstance(exc, aiohttp.ClientOSError)
        and not isinstance(exc, aiohttp.ClientConnectorError)
        and exc.errno
    ):
        return OSError(exc.errno, exc.strerror)  # of the matching class, as the system raised it
    inner: BaseException | None = exc
    while inner is not None:
        # In this order: aiohttp's error for TLS is an ssl.SSLError, too, but an empty one.
        if isinstance(inner, aiohttp.ClientConnectorError):
            return inner.os_error
        if isinstance(inner, ssl.SSLError):
            return inner
        inner = inner.__cause__ or inner.__context__
    return exc


def _query_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _failure(content: bytes, status: int, what: str) -> UnderstudyError:
    try:
        failure = decoding.decode(content, type=Failure)
    except UNDECODABLE:
        text = content[:200].decode(errors="replace").strip()
        return PeerError(what, cause=f"HTTP status {status}: {text or 'no explanation'}")
    return error_of(failure)


def error_of(failure: Failure) -> UnderstudyError:
    """The error that `failure` describes, as the class with its code; of the nearest class when the code is
    not known."""
    classes = _all_errors()
    fallback = next(
        (cls for cls in UnderstudyError.__subclasses__() if cls.exit_code == failure.exit_code),
        UnderstudyError,
    )
    cls = classes.get(failure.code, fallback)
    # The class' defaults must not fill in what the server left empty on purpose; it sent its own words.
    error = cls(failure.what, cause=failure.cause, action=failure.action)
    error.names = [*failure.names]
    return error


def _all_errors() -> dict[str, type[UnderstudyError]]:
    found: dict[str, type[UnderstudyError]] = {}
    todo: list[type[UnderstudyError]] = [UnderstudyError]
    while todo:
        cls = todo.pop()
        found.setdefault(cls.code, cls)
        todo.extend(cls.__subclasses__())
    return found
