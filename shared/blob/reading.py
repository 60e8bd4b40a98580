"""Reading a blob's bytes, all of those that were asked for or an error.

Goes past the SDK's downloader, which after every read of a page blob lists all its page ranges (85 ms of our CPU
per read with 6,000 ranges, and more of the server's), and believes a body that a proxy has shortened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from shared.blob.answers import MisshapenError
from shared.blob.core import BlobCore

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(-?\d+)/(\d+)")
"""(Azurite says "bytes 0--1/0" of an empty blob, where Azure answers 416.)"""


async def download(
    core: BlobCore, what: str, name: str, offset: int, length: int | None, snapshot: str | None
) -> bytes:
    """The bytes from `offset`, at most `length`; fewer only where the blob ends. RangeError when `offset`
    is at or behind its end.
    """
    # A range always: only answers to ranges tell how long the blob is.
    wanted = f"bytes={offset}-" if length is None else f"bytes={offset}-{offset + length - 1}"

    async def attempt() -> bytes:
        response, pieces = await core.blob(name, snapshot)._client.blob.download(
            range=wanted, decompress=False, cls=lambda answer, stream, _: (answer.http_response, stream)
        )
        try:
            data = b"".join([piece async for piece in pieces])
        except BaseException:
            response.internal_response.close()
            raise
        _check(response.headers, len(data), offset, length)
        return data

    return await core.call(what, attempt, size_b=length or 0)


def _check(headers: Mapping[str, str], got_b: int, offset: int, length: int | None) -> None:
    """Raises MisshapenError if the body is not what the request and the answer's own headers promise."""
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None:
        raise MisshapenError("it does not say which bytes came")
    first, last, size_b = (int(number) for number in found.groups())
    end_b = size_b if length is None else min(offset + length, size_b)
    if (first, last + 1) != (offset, end_b) or got_b != end_b - offset:
        raise MisshapenError(f"{got_b} bytes from {first} on came of {end_b - offset} from {offset} on")
