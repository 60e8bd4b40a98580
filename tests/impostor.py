"""Something that answers in the config server's place, with real TLS: for tests of what its clients take and refuse."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from shared import api

Answers = Mapping[str, Callable[[dict[str, Any]], msgspec.Struct | web.Response]]
"""Route name → from the request's JSON to the answer."""


@contextlib.asynccontextmanager
async def answering(context: ssl.SSLContext, answers: Answers) -> AsyncIterator[str]:
    """Its URL. Routes without an answer are not there."""
    app = web.Application()
    for route in api.ROUTES:
        if route.name in answers:
            app.router.add_route(route.method, route.path, _handler(answers[route.name]))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _handler(answer: Callable[[dict[str, Any]], msgspec.Struct | web.Response]) -> Any:
    async def handle(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        given = answer(msgspec.json.decode(raw) if raw else {})
        if isinstance(given, web.Response):
            return given
        return web.Response(body=msgspec.json.encode(given), content_type="application/json")

    return handle
