"""aiohttp's pool of TLS connections, with what asyncio's TLS needs around it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import aiohttp

if TYPE_CHECKING:
    import ssl

_TLS_CLOSE_LEAKS: Final = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)
"""asyncio keeps a TLS connection for ever whose peer closes it at the same time (CPython issue 118950)."""


class TlsConnector(aiohttp.TCPConnector):
    """Connections that were closed are aborted after a while where asyncio would keep them.

    A connection whose answer was no HTTP is closed twice, by the parser's failure and by its release. asyncio's transport forgets at the
    second time what it stands for, and fails when it is aborted: that would end the cleaning up, and closing the pool, for all others.
    """

    def __init__(self, context: ssl.SSLContext, limit: int) -> None:
        super().__init__(ssl=context, limit=limit, enable_cleanup_closed=_TLS_CLOSE_LEAKS)

    def _cleanup_closed(self) -> None:
        self._forget_ended()
        super()._cleanup_closed()

    def _close(self, *, abort_ssl: bool = False) -> Any:
        self._forget_ended()
        return super()._close(abort_ssl=abort_ssl)

    def _forget_ended(self) -> None:
        self._cleanup_closed_transports = [
            transport
            for transport in self._cleanup_closed_transports
            if getattr(transport, "_ssl_protocol", transport) is not None
        ]
