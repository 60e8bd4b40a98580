"""Page blobs of the container: seed disks. `BlobStore.pages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shared.blob.core import BlobCore
from shared.blob.leases import existing_leased
from shared.blob.reading import download
from shared.errors import BlobTooShortError, RangeError

PAGE: Final = 512
PAGE_WRITE_MAX_B: Final = 4 * 1024 * 1024
"""Azure refuses larger page writes (Azurite does not)."""


class PageBlobs:
    """All offsets and lengths are bytes and multiples of 512.

    A write that carries `sequence_number` happens only while the blob's sequence number is still that one:
    a delayed request of an earlier try cannot land later. PreconditionError otherwise; LeaseLostError when
    `lease` is no longer the blob's.
    """

    def __init__(self, core: BlobCore) -> None:
        self._core = core

    async def create(self, name: str, size_b: int, metadata: Mapping[str, str] | None = None) -> None:
        """A new, empty (all zeroes) page blob. BlobExistsError if there is a blob of this name."""
        from azure.core import MatchConditions

        with existing_leased():
            await self._core.call(
                f"create page blob {name}",
                lambda: self._core.blob(name).create_page_blob(
                    size_b, metadata=dict(metadata or {}), match_condition=MatchConditions.IfMissing
                ),
            )

    async def write(
        self,
        name: str,
        offset: int,
        data: bytes,
        lease: str | None = None,
        sequence_number: int | None = None,
    ) -> None:
        """Writes at most PAGE_WRITE_MAX_B at `offset`. Repeating it is harmless."""
        await self._core.call(
            f"write {len(data)} bytes at {offset} of {name}",
            lambda: self._core.blob(name).upload_page(
                data, offset, len(data), **_fence(lease, sequence_number)
            ),
            size_b=len(data),
        )

    async def read(self, name: str, offset: int, length: int, snapshot: str | None = None) -> bytes:
        """`length` bytes from `offset`; zeroes where nothing was written. BlobTooShortError if the blob does not
        hold them all.
        """
        what = f"read {length} bytes at {offset} of {name}"
        try:
            data = await download(self._core, what, name, offset, length, snapshot)
        except RangeError as exc:
            raise BlobTooShortError(f"Could not {what}", cause="it ends before them") from exc
        if len(data) != length:
            raise BlobTooShortError(f"Could not {what}", cause=f"it ends after {len(data)} of them")
        return data

    async def clear(
        self,
        name: str,
        offset: int,
        length: int,
        lease: str | None = None,
        sequence_number: int | None = None,
    ) -> None:
        """Makes the range read as zeroes and cost nothing."""
        await self._core.call(
            f"clear {length} bytes at {offset} of {name}",
            lambda: self._core.blob(name).clear_page(offset, length, **_fence(lease, sequence_number)),
        )

    async def resize(self, name: str, size_b: int, lease: str | None = None) -> None:
        await self._core.call(
            f"resize {name}", lambda: self._core.blob(name).resize_blob(size_b, **_fence(lease))
        )

    async def set_sequence_number(self, name: str, number: int, lease: str | None = None) -> None:
        """Raises the blob's sequence number to `number`; never lowers it, also when a delayed request comes
        late.
        """
        from azure.storage.blob import SequenceNumberAction

        await self._core.call(
            f"set the sequence number of {name}",
            lambda: self._core.blob(name).set_sequence_number(
                SequenceNumberAction.MAX, str(number), **_fence(lease)
            ),
        )

    async def ranges(self, name: str, snapshot: str | None = None) -> list[tuple[int, int]]:
        """(offset, length) of the written ranges, in order; the rest reads as zeroes."""

        listed = self._core.listed(
            f"list the pages of {name}", self._core.blob(name, snapshot).list_page_ranges()
        )
        return [
            (r.start, r.end - r.start + 1)
            async for r in listed
            if not r.cleared and r.start is not None and r.end is not None
        ]


def _fence(lease: str | None, sequence_number: int | None = None) -> dict[str, Any]:
    fence: dict[str, Any] = {}
    if lease is not None:
        fence["lease"] = lease
    if sequence_number is not None:
        fence["if_sequence_number_eq"] = sequence_number
    return fence
