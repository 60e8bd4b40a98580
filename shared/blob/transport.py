"""How request bodies reach the socket. Imports Azure's SDK at once: only `connection` imports it,
lazily.

Handed over as one piece, a body of megabytes is copied whole into TLS buffers and blocks the event loop
meanwhile. In pieces it costs a fifth of the CPU (0.2 instead of 1.1 seconds for 256 MiB) and other tasks
run in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from azure.core.pipeline.transport import AioHttpTransport

_PIECE_B: Final = 128 * 1024


class PiecewiseTransport(AioHttpTransport):  # type: ignore[misc]
    def _get_request_data(self, request: Any) -> Any:
        body = super()._get_request_data(request)
        # Content-Length is set by the SDK, so a body in pieces is not sent "chunked".
        return _pieces(body) if isinstance(body, bytes) and len(body) > _PIECE_B else body


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for at in range(0, len(view), _PIECE_B):
        yield view[at : at + _PIECE_B]
