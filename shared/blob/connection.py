"""The connection to a storage account: one HTTPS pool under Azure's SDK, with two lanes (lanes.py).

The SDK is imported when a connection is made, not when this module is: the command line must start fast.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Any, Final

from shared.blob.config import BlobConfig
from shared.blob.lanes import BULK, BULK_B, CONNECTIONS, SMALL, Lane

if TYPE_CHECKING:
    from azure.storage.blob.aio import BlobServiceClient

    from shared.blob.transport import ProxiedTransport
    from shared.http.proxies import Proxy

_SINGLE_REQUEST_B: Final = 256 * 1024 * 1024
"""Below this size, a blob is written in one request."""


class Connection:
    """Shared by all stores that were made from one (`BlobStore.with_retry`)."""

    def __init__(self, config: BlobConfig, key: str | None, sas: str, tls: ssl.SSLContext) -> None:
        """With a key, a granted token, or neither: then with this host's own identity."""
        import aiohttp
        from azure.core.credentials import AzureSasCredential
        from azure.storage.blob.aio import BlobServiceClient

        from shared.blob.transport import OneAttempt, ProxiedTransport, StorageTransport
        from shared.http.connector import TlsConnector

        # The SDK logs each request's URL and headers, and warns on every retry: our errors say it better, once.
        logging.getLogger("azure").setLevel(logging.CRITICAL)
        # Our own session: the SDK would build a TLS context for every request, and so never reuse a connection.
        self._session = aiohttp.ClientSession(
            connector=TlsConnector(tls, CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        # aiohttp would repeat requests by itself, out of our sight, and bodies that are sent in pieces wrongly.
        self._session._retry_connection = False
        self._url = config.url
        self._identity: Any = None
        self.granted = bool(sas)
        """Whether somebody else decides what we may, and for how long."""
        if key is None and not sas:
            from azure.identity.aio import DefaultAzureCredential

            # Its requests (metadata service, sign-in) follow the same rule of proxies; storage's CA is not theirs.
            self._identity = DefaultAzureCredential(transport=ProxiedTransport(use_env_settings=False))
        self._transport: ProxiedTransport = StorageTransport(session=self._session, session_owner=False)
        self.service: BlobServiceClient = BlobServiceClient(
            config.url,
            credential=self._identity
            or (
                AzureSasCredential(sas) if sas else {"account_name": config.account, "account_key": key or ""}
            ),
            transport=self._transport,
            retry_policy=OneAttempt(),
            connection_timeout=10,
            read_timeout=60,
            connection_data_block_size=1024 * 1024,
            max_single_put_size=_SINGLE_REQUEST_B,
        )
        self._small: Final = Lane(SMALL)
        self._bulk: Final = Lane(BULK)

    def lane(self, size_b: int) -> Lane:
        return self._bulk if size_b >= BULK_B else self._small

    @property
    def proxy(self) -> Proxy | None:
        """The proxy between us and the account."""
        return self._transport.known_route(self._url)

    async def close(self) -> None:
        await self.service.close()
        if self._identity is not None:
            await self._identity.close()
        await self._session.close()
        await asyncio.sleep(0)  # one turn of the loop, in which aborted connections give their sockets back
