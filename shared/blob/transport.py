"""How requests reach the socket. Imports Azure's SDK at once: only `connection` imports it, lazily.

- Handed over as one piece, a body of megabytes is copied whole into TLS buffers and blocks the event loop
  meanwhile. In pieces it costs a fifth of the CPU (0.2 instead of 1.1 seconds for 256 MiB) and other tasks run in
  between.
- A proxy of the environment is used for what is far away only (shared/http/proxies.py).
- An answer without the request id that each answer of blob storage carries is not storage's, whatever it says.
- A listing that is not what listings look like is no listing. The SDK takes an empty body for an end of iteration, and every other
  document for an empty list: of pages, that would be a disk of zeroes.
- A request's own id is random. The SDK makes one of time and network address, which waits, and holds the whole process, until the wall
  clock moves; and it tells storage the address.
"""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

from azure.core.pipeline.transport import AioHttpTransport
from azure.storage.blob.aio import ExponentialRetry

from shared.blob.answers import ForeignAnswerError, MisshapenError
from shared.http.proxies import Proxy, configured_proxy, proxy_for

_PIECE_B: Final = 128 * 1024
_ROOTS: Final = {"list": "EnumerationResults", "pagelist": "PageList"}
"""Query parameter `comp` → the document that answers it."""
_ROUTE_S: Final = 60.0
"""After so long DNS is asked again whether a server is near: it may not have answered, or have changed."""


class ProxiedTransport(AioHttpTransport):  # type: ignore[misc]
    """The SDK's transport with our rule of which servers a proxy is for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._routes: dict[str, tuple[float, Proxy | None]] = {}

    def known_route(self, url: str) -> Proxy | None:
        """The proxy on the way to this server, as far as it is known without asking DNS."""
        _, proxy = self._routes.get(_server(url)) or (0.0, configured_proxy(url))
        return proxy

    async def _route(self, url: str) -> Proxy | None:
        server, now = _server(url), time.monotonic()
        if server not in self._routes or now - self._routes[server][0] > _ROUTE_S:
            self._routes[server] = now, await proxy_for(url)
        return self._routes[server][1]

    async def send(self, request: Any, **config: Any) -> Any:
        proxy = await self._route(request.url)
        return await super().send(request, **config, **({"proxy": proxy.url} if proxy else {}))


class OneAttempt(ExponentialRetry):
    """The SDK's layer of retries, which makes none (core.py does), and names the request."""

    def __init__(self) -> None:
        super().__init__(retry_total=0)

    async def send(self, request: Any) -> Any:  # type: ignore[override]
        request.context.options["client_request_id"] = str(uuid.uuid4())
        return await super().send(request)  # type: ignore[no-untyped-call]


class StorageTransport(ProxiedTransport):
    async def send(self, request: Any, **config: Any) -> Any:
        response = await super().send(request, **config)
        if "x-ms-request-id" not in response.headers:
            response.internal_response.close()
            raise ForeignAnswerError(response.status_code)
        comp = parse_qs(urlsplit(request.url).query).get("comp", [""])[0]
        if comp in _ROOTS and response.status_code == 200:
            _check_listing(comp, response.body(), response.headers)
        return response

    def _get_request_data(self, request: Any) -> Any:
        body = super()._get_request_data(request)
        # Content-Length is set by the SDK, so a body in pieces is not sent "chunked".
        return _pieces(body) if isinstance(body, bytes) and len(body) > _PIECE_B else body


def _server(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _check_listing(comp: str, body: bytes, headers: Any) -> None:
    """Raises MisshapenError unless the answer's document is of the kind that was asked for, and tells of which blob it is."""
    try:
        _, root = next(ElementTree.iterparse(io.BytesIO(body), ("start",)))  # noqa: S314 - the SDK parses it, too
    except ElementTree.ParseError as exc:
        raise MisshapenError(f"no XML came of a {comp}: {exc}") from exc
    if root.tag != _ROOTS[comp]:
        raise MisshapenError(f"a document {root.tag!r} came instead of {_ROOTS[comp]}")
    if comp == "pagelist" and not headers.get("x-ms-blob-content-length", "").isdecimal():
        raise MisshapenError("it does not say how large the blob is")


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for at in range(0, len(view), _PIECE_B):
        yield view[at : at + _PIECE_B]
