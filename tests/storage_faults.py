"""Storage that fails on purpose: a reverse proxy before a real blob service, over real TCP and TLS.

    azurite ◄── FaultProxy ◄── clients      with FaultProxy(azurite) as storage: connect(storage.config("test"))

Each request is matched with the rules, in order; the first whose pattern fits, and whose turn it is, decides
what becomes of it. Without one, the real answer is passed on as it is. A rule knows how often it struck, and
`seen` which operations came by: a story can check that its faults have really happened.

The proxy runs in a thread of its own: it serves daemons beside a synchronous story as well as a test that is
itself asynchronous.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import re
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import formatdate
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from yarl import URL

from shared.blob import BlobConfig
from tests.azurite import Azurite

_HOP_BY_HOP: Final = {"connection", "keep-alive", "transfer-encoding", "host"}

_CLOSING_S: Final = 0.2
"""So long closed TLS connections have for their farewell, before the loop ends."""


class Place(NamedTuple):
    """A kind of operation at a kind of blob: what a rule's patterns are to be to strike there."""

    method: str
    comp: str
    blob: str


@dataclasses.dataclass(frozen=True)
class Operation:
    """One request to storage, as rules see it."""

    method: str
    comp: str
    """The query parameter: page, appendblock, lease, metadata, snapshot, list, pagelist, properties… or ""."""
    blob: str
    """Name of the blob; of a listing its prefix; "" for the container."""

    def __str__(self) -> str:
        return f"{self.method} {self.comp}".rstrip()

    @property
    def place(self) -> Place:
        return Place(self.method, self.comp, re.sub(r"[0-9a-f]{8,}|[0-9]+", "*", self.blob))


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer of our own. With `applied`, storage has done what was asked, and only its answer is lost."""

    status: int
    code: str = ""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: bytes | None = None
    applied: bool = False
    foreign: bool = False
    """Not storage's: without the headers that each of its answers has, as from a gateway between."""


@dataclasses.dataclass(frozen=True)
class Stall:
    """No answer, for as long as the client waits; with `after_b`, none behind so many bytes of the body."""

    applied: bool = False
    after_b: int | None = None


@dataclasses.dataclass(frozen=True)
class Cut:
    """The connection is reset: before any answer, or with `after_b` behind so many bytes of its body."""

    applied: bool = False
    after_b: int | None = None


@dataclasses.dataclass(frozen=True)
class Short:
    """The answer lacks the last bytes of its body, and its Content-Length says nothing of it."""

    by_b: int = 1


@dataclasses.dataclass(frozen=True)
class Slow:
    """The real answer, after a pause."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Dressed:
    """The real answer, with these headers besides or instead."""

    headers: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Late:
    """The real answer, after a pause; storage does then what was asked, whether or not anybody still waits for it."""

    seconds: float


Fault = Answer | Stall | Cut | Short | Slow | Dressed | Late


def throttled(retry_after: str = "1", *, status: int = 503) -> Answer:
    code = "ServerBusy" if status == 503 else "TooManyRequests"
    return Answer(status, code, headers={"Retry-After": retry_after} if retry_after else {})


@dataclasses.dataclass
class Rule:
    """`fault` for the requests that fit the patterns (as of fnmatch), from the `nth` on, `times` of them; None:
    all of them. `chance`: strikes only so often, by a seeded generator. `then` is called when it strikes, in the proxy's thread.
    """

    fault: Fault
    method: str = "*"
    comp: str = "*"
    blob: str = "*"
    nth: int = 1
    times: int | None = 1
    chance: float = 1.0
    then: Callable[[], object] = lambda: None
    struck: int = 0
    fitted: int = 0

    def takes(self, operation: Operation, dice: random.Random) -> bool:
        patterns = ((self.method, operation.method), (self.comp, operation.comp), (self.blob, operation.blob))
        if not all(fnmatchcase(value, pattern) for pattern, value in patterns):
            return False
        self.fitted += 1
        if self.fitted < self.nth or (self.times is not None and self.struck >= self.times):
            return False
        if self.chance < 1.0 and dice.random() >= self.chance:
            return False
        self.struck += 1
        return True


class FaultProxy:
    """A context manager; `port` is fixed after the start, over restarts of the service behind it."""

    def __init__(self, server: Azurite, *, seed: int = 0) -> None:
        self.port = 0
        self.seen: Counter[str] = Counter()
        """How often each kind of operation came by."""
        self.places: set[Place] = set()
        """Where operations came by."""
        self.active = 0
        """Requests that are being served, and how many there ever were at once."""
        self.most_active = 0
        self.struck: Counter[tuple[str, str]] = Counter()
        """(operation, fault) → how often."""
        self._server = server
        self._rules: list[Rule] = []
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._late: set[asyncio.Task[web.StreamResponse]] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/{self._server.account}"

    @property
    def key_file(self) -> Path:
        return self._server.key_file

    @property
    def ca_file(self) -> Path:
        return self._server.ca_file

    def config(self, container: str) -> BlobConfig:
        return BlobConfig(
            url=self.url, container=container, account_key_file=self.key_file, ca_file=self.ca_file
        )

    def add(self, fault: Fault, **where: object) -> Rule:
        """A new rule, behind the others; `where` as the fields of Rule."""
        rule = Rule(fault, **where)  # type: ignore[arg-type]
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """No more faults; what was counted stays."""
        with self._lock:
            self._rules.clear()

    def forget(self) -> None:
        """As new."""
        with self._lock:
            self._rules.clear()
            self.seen.clear()
            self.struck.clear()
            self.most_active = 0

    def wait_active(self, count: int) -> None:
        """Until so many requests are being served at once."""
        with self._changed:
            self._changed.wait_for(lambda: self.active >= count)

    def wait_idle(self) -> None:
        """Until nothing is being served, nor to be done late."""
        with self._changed:
            self._changed.wait_for(lambda: self.active == 0)

    # ---- serving ----

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.load_cert_chain(self._server.ca_file, self._server.tls_key_file)
        trusting = ssl.create_default_context(cafile=self._server.ca_file)
        connector = aiohttp.TCPConnector(ssl=trusting, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._client:
            # A stalled answer ends with the connection: its handler is cancelled.
            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
            await runner.setup()
            try:
                site = web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=own)
                await site.start()
                self.port = runner.addresses[0][1]
                self._started.set()
                await self._stop.wait()
            finally:
                await runner.cleanup()
        await asyncio.sleep(_CLOSING_S)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._begin()
        try:
            return await self._answer(request, await request.read())
        finally:
            self._end()

    def _begin(self) -> None:
        with self._changed:
            self.active += 1
            self.most_active = max(self.most_active, self.active)
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self.active -= 1
            self._changed.notify_all()

    async def _answer(self, request: web.Request, body: bytes) -> web.StreamResponse:
        operation = _operation(request)
        fault = self._fault_for(operation)
        match fault:
            case None:
                return await self._pass_on(request, body)
            case Slow(seconds):
                await asyncio.sleep(seconds)
                return await self._pass_on(request, body)
            case Late(seconds):
                late = asyncio.create_task(self._later(seconds, request, body))
                self._late.add(late)
                return await asyncio.shield(late)
            case Dressed(headers):
                answer = await self._pass_on(request, body)
                answer.headers.update(headers)
                return answer
            case Answer():
                if fault.applied:
                    await self._ask(request, body)
                return _answered(fault)
            case Stall(applied, None):
                if applied:
                    await self._ask(request, body)
                return await _never()
            case Cut(applied, None):
                if applied:
                    await self._ask(request, body)
                return _reset(request)
            case Short(by_b):
                return await self._pass_on(
                    request, body, change=lambda data: data[: max(0, len(data) - by_b)]
                )
            case Stall(_, after_b) | Cut(_, after_b):
                status, headers, data = await self._ask(request, body)
                started = web.StreamResponse(status=status, headers=headers)
                if request.method == "HEAD" or not data:
                    return await _never() if isinstance(fault, Stall) else _reset(request)
                started.content_length = len(data)
                await started.prepare(request)
                await started.write(data[: min(after_b or 0, len(data) - 1)])
                return await _never() if isinstance(fault, Stall) else _reset(request)

    async def _later(self, seconds: float, request: web.Request, body: bytes) -> web.StreamResponse:
        self._begin()
        try:
            await asyncio.sleep(seconds)
            return await self._pass_on(request, body)
        finally:
            self._end()

    async def _pass_on(
        self, request: web.Request, body: bytes, change: Callable[[bytes], bytes] = lambda data: data
    ) -> web.StreamResponse:
        try:
            status, headers, data = await self._ask(request, body)
        except aiohttp.ClientError:  # the service behind is down: so is this one
            return _reset(request)
        if request.method == "HEAD":
            return web.Response(status=status, headers=headers)
        headers.pop("Content-Length", None)
        headers.pop("Content-MD5", None)
        return web.Response(status=status, headers=headers, body=change(data))

    async def _ask(self, request: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        url = URL(f"https://127.0.0.1:{self._server.port}{request.raw_path}", encoded=True)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        async with self._client.request(
            request.method, url, headers=headers, data=body or None, skip_auto_headers={"Content-Type"}
        ) as answer:
            kept = {n: v for n, v in answer.headers.items() if n.lower() not in _HOP_BY_HOP}
            return answer.status, kept, await answer.read()

    def _fault_for(self, operation: Operation) -> Fault | None:
        with self._lock:
            self.seen[str(operation)] += 1
            self.places.add(operation.place)
            rule = next((rule for rule in self._rules if rule.takes(operation, self._dice)), None)
            if rule is None:
                return None
            self.struck[str(operation), _name(rule.fault)] += 1
        rule.then()
        return rule.fault


def _operation(request: web.Request) -> Operation:
    parts = [unquote(part) for part in request.raw_path.split("?")[0].split("/", 3)]
    blob = parts[3] if len(parts) > 3 else request.query.get("prefix", "")
    return Operation(request.method, request.query.get("comp", ""), blob)


def _name(fault: Fault) -> str:
    if isinstance(fault, Answer):
        return f"{fault.status} {fault.code}".rstrip()
    return type(fault).__name__.lower()


def _answered(fault: Answer) -> web.Response:
    headers = {"Date": formatdate(usegmt=True), **fault.headers}
    if not fault.foreign:
        headers |= {"x-ms-request-id": "fault", "x-ms-version": "2021-12-02"}
    if fault.code:
        headers["x-ms-error-code"] = fault.code
    body = fault.body
    if body is None:
        message = f"<Error><Code>{fault.code}</Code><Message>on purpose</Message></Error>"
        body = f'<?xml version="1.0" encoding="utf-8"?>{message}'.encode() if fault.code else b""
    return web.Response(status=fault.status, headers=headers, body=body, content_type="application/xml")


async def _never() -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


def _reset(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    raise asyncio.CancelledError
