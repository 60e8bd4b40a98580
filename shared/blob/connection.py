"""The connection to a storage account: one HTTPS pool under Azure's SDK.

The SDK is imported when a connection is made, not when this module is: the command line must start fast.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from shared.blob.config import BlobConfig

if TYPE_CHECKING:
    from azure.identity.aio import DefaultAzureCredential
    from azure.storage.blob.aio import BlobServiceClient

CONNECTIONS: Final = 32
_TLS_CLOSE_LEAKS: Final = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)
"""asyncio keeps a TLS connection for ever whose peer closes it at the same time (CPython issue 118950)."""
_SINGLE_REQUEST_B: Final = 256 * 1024 * 1024
"""Below this size, a blob is written and read in one request."""


def open_service(
    config: BlobConfig, key: str | None, tls: ssl.SSLContext
) -> tuple[BlobServiceClient, Callable[[], Awaitable[None]]]:
    import aiohttp
    from azure.storage.blob.aio import BlobServiceClient

    from shared.blob.transport import PiecewiseTransport

    # The SDK logs each request's URL and headers, and warns on every retry: our errors say it better, once.
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    # Our own session: the SDK would build a TLS context for every request, and so never reuse a connection.
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=CONNECTIONS, enable_cleanup_closed=_TLS_CLOSE_LEAKS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=True,
    )
    identity: DefaultAzureCredential | None = None
    if key is None:
        from azure.identity.aio import DefaultAzureCredential

        identity = DefaultAzureCredential()
    service = BlobServiceClient(
        config.url,
        credential=identity or {"account_name": config.account, "account_key": key or ""},
        transport=PiecewiseTransport(session=session, session_owner=False),
        retry_total=0,
        connection_timeout=10,
        read_timeout=60,
        connection_data_block_size=1024 * 1024,
        max_single_put_size=_SINGLE_REQUEST_B,
        max_single_get_size=_SINGLE_REQUEST_B,
        max_chunk_get_size=16 * 1024 * 1024,
    )

    async def close() -> None:
        await service.close()
        if identity is not None:
            await identity.close()
        await session.close()
        await asyncio.sleep(0)  # one turn of the loop, in which aborted connections give their sockets back

    return service, close
