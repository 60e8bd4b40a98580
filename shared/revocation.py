"""The list of revoked certificates at a daemon that must know it: as the config server told it last, and over restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from shared import decoding, durable
from shared.errors import UNDECODABLE, RevokedListError, cause_of
from shared.messages import Revocations
from shared.single_writer import SingleWriter
from shared.trouble import Trouble

REVOKED_FILE: Final = "revoked.json"


class RevokedFile:
    """The newest list of revoked certificates, kept beside our own: a restart while the config server is away must not readmit anybody."""

    def __init__(self, path: Path, use: Callable[[Revocations], None]) -> None:
        self.trouble: Final = Trouble("revoked certificates", lambda: None)
        """Why the newest list is not on the disk."""
        self._path = path
        self._use = use
        self._known = Revocations()
        self._writer: Final = SingleWriter("store revoked certificates", self._store)

    def load(self) -> None:
        try:
            self._known = decoding.decode(self._path.read_bytes(), type=Revocations)
        except FileNotFoundError:
            return
        except (OSError, *UNDECODABLE) as exc:
            # The config server's next answer brings it again.
            self._writer.changed()
            self.trouble.report(self._failed("read", str(exc)))
            return
        self._use(self._known)

    async def take(self, revoked: Revocations) -> None:
        """Used at once, whatever the disk says; stored when it has changed, and tried again with the next answer."""
        if revoked != self._known:
            self._known = revoked
            self._writer.changed()
            self._use(revoked)
        await self._writer.written()

    async def _store(self) -> bool:
        data = msgspec.json.encode(self._known)
        try:
            await asyncio.to_thread(durable.replace_file, self._path, data, mode=0o644)
        except OSError as exc:
            self.trouble.report(self._failed("written", cause_of(exc)))
            return False
        self.trouble.report(None)
        return True

    def _failed(self, verb: str, cause: str) -> RevokedListError:
        return RevokedListError(
            f"The list of revoked certificates {self._path} could not be {verb}", cause=cause
        )
