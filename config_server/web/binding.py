"""Binds handlers to the routes of shared/api/: authentication, decoding, errors. Decides nothing else.

A daemon is who its certificate says (TLS has verified it against the CA); an operator is who sends a token
whose hash is stored. What a handler raises becomes an HTTP status and a `Failure` body; only an error that
is not an UnderstudyError is a bug, and is logged with its traceback.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from config_server.operations.call import ANY, Call, Operator
from shared import decoding
from shared.api import ROUTES, Access, Route, failures, openapi
from shared.api.route import MAX_BODY_B, MAX_KEY_LENGTH, MAX_WAIT_S, FailureAnswer, Nothing, Versioned
from shared.daemon import logging
from shared.errors import (
    UNDECODABLE,
    AccessError,
    CertificateRevokedError,
    ForbiddenError,
    NotFoundError,
    RequestError,
    UnderstudyError,
    WrongRoleError,
)
from shared.serving.connections import unmapped
from shared.serving.refusals import Refusals
from shared.trust import tls

_log = logging.get()
_Q = TypeVar("_Q", bound=msgspec.Struct)
_R = TypeVar("_R", bound=msgspec.Struct)
_Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]

_VERSION: Final = re.compile(r'(?:W/)?"[!#-~]*"|\*')
_KEY_DIGITS: Final = 16
_BODY_S: Final = 15.0
_STRANGERS_BODY_B: Final = 64 << 10
"""Of a caller who has not said who he is; a request for a certificate has one kilobyte."""


undeclared: Final[set[tuple[str, str]]] = set()
"""Routes, and codes of errors with which they have answered and that they do not name (`Route.errors`): each is logged once, and fails a
test (tests/conftest.py)."""


class Asked(Protocol):
    def __call__(self, request: web.Request, *, proved: bool) -> None: ...


async def _is_in_force() -> None:
    return None


class Binder:
    """Collects one handler per route, then makes the application."""

    def __init__(
        self,
        operator_of: Callable[[str], Awaitable[Operator | None]],
        is_revoked: Callable[[int, str, int], bool],
        asked: Asked,
        superseded: Callable[[], Awaitable[UnderstudyError | None]] = _is_in_force,
    ) -> None:
        """`is_revoked`: whether the certificate with this serial number, ROLE:NAME and begin is. `asked` is told of each request that
        has come whole. `superseded`: why nothing is changed here any more, where that is so."""
        self._superseded = superseded
        self._operator_of = operator_of
        self._is_revoked = is_revoked
        self._asked = asked
        self._refusals = Refusals()
        self._endpoints: dict[str, _Endpoint] = {}

    def on(self, route: Route[_Q, _R], handler: Callable[[Call, _Q], Awaitable[_R]]) -> None:
        """`handler` does `route`. Its types are the route's."""

        async def endpoint(request: web.Request) -> web.StreamResponse:
            try:
                call, body = await self._receive(request, route)
                if route.changes and (error := await self._superseded()) is not None:
                    raise error
                answer = await handler(call, body)
                # Once more: an answer that was held may have outlived the right to it.
                self._refuse_revoked(request, route)
                return _answer(route.status, answer)
            except UnderstudyError as exc:
                return self._refuse(request, route, exc)
            except asyncio.CancelledError:
                raise
            except Exception as exc:  # noqa: BLE001 - the outermost frame of a request
                _log.error("request failed: this is a bug", route=route.name, exc_info=exc)
                bug = UnderstudyError(
                    f"The operation '{route.name}' failed",
                    cause="an error inside the config server",
                    action="See its log, and report it.",
                )
                return self._refuse(request, route, bug)

        self._endpoints[route.name] = endpoint

    def application(self) -> web.Application:
        """Raises LookupError when a route has no handler: that is a bug in this program."""
        app = web.Application(middlewares=[_explained])
        for route in ROUTES:
            app.router.add_route(route.method, route.path, self._endpoints[route.name])
        app.router.add_get(openapi.PATH, functools.partial(_describe, openapi.served()))
        return app

    async def _receive(self, request: web.Request, route: Route[_Q, _R]) -> tuple[Call, _Q]:
        # First who, then what: nothing of a stranger's body is looked at.
        who = await self._authenticate(request, route)
        raw = await _body(request, route)
        self._asked(request, proved=route.access is not Access.PUBLIC)
        # Again: its body may have taken its time, and the caller may be revoked since.
        self._refuse_revoked(request, route)
        ssl_object = _ssl_object(request)
        call = Call(
            who,
            _path(request, route),
            raw,
            _wait_s(request) if route.waits else 0.0,
            tls.peer_serial(ssl_object),
            tls.peer_begins_s(ssl_object),
            (ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None) or b"",
            _peer_hosts(request),
            unmapped(request.remote or ""),
            _over(request, route),
            request.headers.get("If-None-Match", "").strip() == ANY,
            _key(request, route, who),
            lambda: request.transport is not None and not request.transport.is_closing(),
        )
        return call, _decode(request, route, raw)

    async def _authenticate(self, request: web.Request, route: Route[Any, Any]) -> str:
        if route.access is Access.PUBLIC:
            return ""
        if route.access is Access.DAEMON:
            roles = [f"{role}:*" for role in route.roles]
            name = tls.peer_name(_ssl_object(request))
            if not name:
                raise AccessError(
                    f"The call '{route.name}' was refused",
                    cause="it came without a certificate",
                    action="Enrol this host: understudy token create, then python -m shared.control.enrol.",
                )
            self._refuse_revoked(request, route)
            return tls.require_name(name, *roles) if roles else name
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise AccessError(
                f"The call '{route.name}' was refused", cause="it needs the operator token, and none was sent"
            )
        operator = await self._operator_of(token.strip())
        if operator is None:
            raise AccessError(
                f"The call '{route.name}' was refused",
                cause="the operator token is not valid on this config server",
            )
        if route.needs not in operator.allowed:
            raise ForbiddenError(
                f"The call '{route.name}' was refused",
                cause=f"operator '{operator.name}' is not allowed {route.needs}",
            )
        return f"operator:{operator.name}"

    def _refuse_revoked(self, request: web.Request, route: Route[Any, Any]) -> None:
        ssl_object = _ssl_object(request)
        name = tls.peer_name(ssl_object)
        certificate = tls.peer_serial(ssl_object), name, tls.peer_begins_s(ssl_object)
        if route.access is Access.DAEMON and self._is_revoked(*certificate):
            raise CertificateRevokedError(f"The certificate of {name} was refused")

    def _refuse(self, request: web.Request, route: Route[Any, Any], exc: UnderstudyError) -> web.Response:
        self._check_declared(route, exc)
        if isinstance(exc, (AccessError, ForbiddenError, WrongRoleError, CertificateRevokedError)):
            remote = unmapped(request.remote or "")
            self._refusals.note(
                f"{remote} {exc.code}", "access refused", route=route.name, remote=remote, **exc.as_dict()
            )
        return _failed(failures.status_of(type(exc)), exc)

    def _check_declared(self, route: Route[Any, Any], exc: UnderstudyError) -> None:
        if not failures.may_answer(route, type(exc)) and (route.name, exc.code) not in undeclared:
            undeclared.add((route.name, exc.code))
            _log.error(
                "a call fails as its route does not say: this is a bug", route=route.name, **exc.as_dict()
            )


def _failed(status: int, exc: UnderstudyError) -> web.Response:
    failure = FailureAnswer(
        **exc.as_dict(),
        exit_code=exc.exit_code,
        names=exc.names,
        type=f"urn:understudy:{exc.code}",
        title=exc.what,
        status=status,
        detail=" ".join(filter(None, (exc.cause and f"{exc.cause.rstrip('.')}.", exc.action))),
    )
    return _answer(status, failure, openapi.PROBLEM)


def _ssl_object(request: web.Request) -> ssl.SSLObject | None:
    return request.transport.get_extra_info("ssl_object") if request.transport is not None else None


def _peer_hosts(request: web.Request) -> tuple[str, ...]:
    ssl_object = _ssl_object(request)
    certificate = ssl_object.getpeercert() if ssl_object is not None else None
    # getpeercert() is a loosely typed structure: (("DNS", "ps1.example.com"), ("IP Address", "192.0.2.1"), …)
    names: Any = (certificate or {}).get("subjectAltName", ())
    return tuple(str(value) for kind, value in names if kind in ("DNS", "IP Address"))


def _path(request: web.Request, route: Route[Any, Any]) -> dict[str, str]:
    """What stands in the path's places. Raises RequestError for bytes that are no text: nothing has such a name."""
    path = dict(request.match_info)
    try:
        "".join(path.values()).encode()
    except UnicodeEncodeError as exc:
        raise RequestError(f"The call '{route.name}' was refused", cause="its path is not UTF-8") from exc
    return path


async def _body(request: web.Request, route: Route[Any, Any]) -> bytes:
    """Raises RequestError for a body that is too large, does not come, or not in time: who sends so slowly holds memory and a place that
    others want."""
    what = f"The call '{route.name}' was refused"
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestError(what, cause="its body is compressed, and bodies are taken as they are")
    limit_b = _STRANGERS_BODY_B if route.access is Access.PUBLIC else MAX_BODY_B
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            while len(body) <= limit_b and (request.content_length or 0) <= limit_b:
                piece = await request.content.readany()
                if not piece:
                    return bytes(body)
                body += piece
    except TimeoutError as exc:
        raise RequestError(what, cause=f"its body had not come within {_BODY_S:.0f} s") from exc
    except (OSError, aiohttp.ClientError, web.RequestPayloadError) as exc:
        raise RequestError(what, cause="its sender went away before its body had come") from exc
    raise RequestError(what, cause=f"its body is too large: {limit_b} bytes are taken")


def _decode(request: web.Request, route: Route[_Q, _R], raw: bytes) -> _Q:
    try:
        if route.request is msgspec.Struct:
            return route.request()  # the handler decodes Call.body: its type depends on the caller
        if route.method == "GET":
            return decoding.convert(dict(request.query), route.request, strict=False)
        if not raw and route.request is Nothing:
            return route.request()
        return decoding.decode(raw, type=route.request)
    except UNDECODABLE as exc:
        raise RequestError(f"The call '{route.name}' was not understood", cause=str(exc)) from exc


def _over(request: web.Request, route: Route[Any, Any]) -> frozenset[str] | None:
    """Raises RequestError."""
    value = request.headers.get("If-Match")
    if value is None:
        return None
    versions = [part.strip() for part in value.split(",")]
    if not all(_VERSION.fullmatch(part) for part in versions):
        raise RequestError(
            f"The call '{route.name}' was refused",
            cause=f"{value[:100]!a} is no If-Match",
            action='Give the version in quotes: If-Match: "1f2e…", or *.',
        )
    return frozenset(part.removeprefix('"').removesuffix('"') for part in versions)


def _key(request: web.Request, route: Route[Any, Any], who: str) -> str:
    """Of this caller and this route alone: no other can meet it, or guess it from what it names. Raises RequestError."""
    value = request.headers.get("Idempotency-Key")
    if value is None or not route.keyed:
        return ""
    if not 0 < len(value) <= MAX_KEY_LENGTH:
        raise RequestError(
            f"The call '{route.name}' was refused",
            cause=f"its Idempotency-Key has {len(value)} characters",
            action=f"Give 1 to {MAX_KEY_LENGTH}, a random UUID say.",
        )
    return hashlib.sha256("\0".join((who, route.name, value)).encode()).hexdigest()[:_KEY_DIGITS]


def _wait_s(request: web.Request) -> float:
    preference = request.headers.get("Prefer", "")
    try:
        wanted = float(preference.removeprefix("wait=")) if preference.startswith("wait=") else 0.0
    except ValueError:
        return 0.0
    return min(MAX_WAIT_S, max(0.0, wanted))


def _answer(status: int, body: msgspec.Struct, content_type: str = "application/json") -> web.Response:
    headers = {"ETag": f'"{body.version}"'} if isinstance(body, Versioned) else None
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type=content_type, headers=headers
    )


async def _describe(described: bytes, _request: web.Request) -> web.StreamResponse:
    """To anybody: it is no secret, and tools that read it have no token."""
    return web.Response(body=described, content_type="application/json")


@web.middleware
async def _explained(request: web.Request, handler: _Endpoint) -> web.StreamResponse:
    """aiohttp's own refusals, in our words."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as exc:
        allowed = ", ".join(sorted(exc.allowed_methods))
        answer = _failed(exc.status, _nothing_there(request, f"at this path there is {allowed}"))
        answer.headers["Allow"] = allowed
        return answer
    except web.HTTPNotFound as exc:
        return _failed(exc.status, _nothing_there(request))


def _nothing_there(request: web.Request, cause: str = "") -> NotFoundError:
    return NotFoundError(
        f"There is no {request.method} {request.path[:200]!a} on the config server",
        cause=cause,
        action="The API is described in docs/api.md, and by the server at /v1/openapi.json; the client may be of another version.",
    )
