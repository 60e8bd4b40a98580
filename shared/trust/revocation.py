"""The list of revoked certificates at a daemon that must know it: all that its config server ever told, and over restarts.

A config server that was restored from a backup has a list from before, until storage has told it the rest. So what it tells is taken
*into* what is known here (`merged`): who knows of more revocations keeps them. There are never more entries than its installation made
revocations, and certificates of what it revoked; the list belongs to one CA, and of another one's nothing is kept. While that is renewed
it is of both, and by the time that the old one goes it is the new one's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from shared import decoding
from shared.api.certificates import Revocations
from shared.daemon import logging
from shared.daemon.single_writer import SingleWriter
from shared.daemon.trouble import Trouble
from shared.errors import UNDECODABLE, ConfigError, NoThreadError, RevokedListError, cause_of
from shared.host import durable
from shared.trust import anchors

_log = logging.get()
REVOKED_FILE: Final = "revoked.json"
_ASIDE: Final = ".damaged"
"""Behind the name of a file that could not be understood."""


class _Kept(Revocations, frozen=True):
    """The file."""

    ca: str = ""
    """The fingerprint of the CA whose certificates these are; empty in files from before it was noted."""
    also: tuple[str, ...] = ()
    """Of the other one, while the CA is renewed."""

    @property
    def authorities(self) -> set[str]:
        return {self.ca, *self.also} - {""}


class RevokedFile:
    """All revoked certificates that we were told of, kept beside our own: a restart while the config server is away must not readmit
    anybody."""

    def __init__(self, path: Path, ca: Path, use: Callable[[Revocations], None]) -> None:
        self.trouble: Final = Trouble("revoked certificates", lambda: None)
        """Why the newest list is not on the disk."""
        self._path = path
        self._authorities = _fingerprints(ca)
        """Of whom this process hears: the file may be another installation's by the time that something is stored."""
        self._use = use
        self._known = Revocations()
        self._is_read = True
        """Whether all that the file had is known here: until then it is not replaced."""
        self._aside = path.with_name(path.name + _ASIDE)
        self._writer: Final = SingleWriter("store revoked certificates", self._store)

    def load(self) -> None:
        """What cannot be read now is read before anything is written: a config server from a backup does not bring it again."""
        try:
            kept = self._read()
        except OSError as exc:
            self._unread(exc)
        else:
            self._add(kept)
            if kept.authorities and kept.authorities != set(self._authorities):
                self._writer.changed()

    def trusted(self, ca: bytes) -> None:
        """By whom peers are accepted from now on (PEM). Written with the next answer, whatever else is new: the list may have the
        name of a CA that goes some day."""
        authorities = [anchors.fingerprint(each) for each in anchors.loaded(ca)]
        if authorities != self._authorities:
            self._authorities = authorities
            self._writer.changed()

    def _damaged(self) -> RevokedListError | None:
        if not self._aside.exists():
            return None
        return RevokedListError(
            f"The list of revoked certificates {self._path} was damaged",
            cause=f"what it was is in {self._aside}; revocations that the config server does not know may be lost",
            action="Compare: understudy certificate list; whom it should show as revoked, revoke again. Then delete that file.",
        )

    def _unread(self, exc: OSError) -> None:
        self._is_read = False
        self._writer.changed()
        self.trouble.report(self._failed("read", cause_of(exc)))

    def _read(self) -> _Kept:
        """Raises OSError."""
        try:
            kept = decoding.decode(self._path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return _Kept()
        except UNDECODABLE as exc:
            _log.error("revoked certificates: the list is damaged", kept_as=str(self._aside), cause=str(exc))
            durable.remove_file(self._aside)
            durable.move_file(self._path, self._aside)
            return _Kept()
        if kept.authorities and self._authorities and kept.authorities.isdisjoint(self._authorities):
            return _Kept()  # we are enrolled with another installation since, whose names mean others
        return kept

    def _add(self, kept: _Kept) -> None:
        known = merged(Revocations(kept.serials, kept.names, kept.before, kept.since), self._known)
        self._is_read = True
        self.trouble.report(self._damaged())
        if known != self._known:
            self._known = known
            self._use(known)

    async def take(self, told: Revocations) -> None:
        """Used at once, whatever the disk says; stored when it has changed, and tried again with the next answer."""
        known = merged(self._known, told)
        if known != self._known:
            self._known = known
            self._writer.changed()
            self._use(known)
        await self._writer.written()

    async def _store(self) -> bool:
        if not self._is_read:
            try:
                self._add(await asyncio.to_thread(self._read))
            except (OSError, NoThreadError) as exc:
                self.trouble.report(self._failed("read", cause_of(exc)))
                return False
        known = self._known
        ca, *also = self._authorities or [""]
        data = msgspec.json.encode(
            _Kept(known.serials, known.names, known.before, known.since, ca, tuple(also))
        )
        try:
            await asyncio.to_thread(durable.replace_file, self._path, data, mode=0o644)
            damaged = await asyncio.to_thread(self._damaged)
        except (OSError, NoThreadError) as exc:
            self.trouble.report(self._failed("written", cause_of(exc)))
            return False
        self.trouble.report(damaged)
        return True

    def _failed(self, verb: str, cause: str) -> RevokedListError:
        return RevokedListError(
            f"The list of revoked certificates {self._path} could not be {verb}", cause=cause
        )


def merged(known: Revocations, told: Revocations) -> Revocations:
    """What is known after this was told.

    A serial number is never taken back. A name that is told as revoked is refused, whatever was known: to refuse is safe, and an operator's
    word counts although this server's clock once was ahead. It is refused until a readmission is told that is later than each revocation
    that is known, and no earlier than any readmission that is (each of them was later than a revocation, which may not have been told
    here): a config server from a backup also tells those from before. So `since` never falls. One from before `since` was told says
    nothing of when, and is believed.

    Of a name that is both in `names` and in `before`, `since` is that of the readmission: it was told as revoked by who knew less.
    """
    names, before, since = set(known.names), dict(known.before), dict(known.since)
    for name in told.names:
        at, last = told.since.get(name, 0), since.get(name, 0)
        names.add(name)
        if at > last or not last:
            since[name] = at
            before.pop(name, None)
    for name, begins_s in told.before.items():
        last = since.get(name, 0)
        at = told.since.get(name, last + 1)
        if at > last or (at == last and (name not in names or name in known.before)):
            names.discard(name)
            before[name], since[name] = begins_s, at
    serials = set(known.serials).union(told.serials)
    return Revocations(sorted(serials), sorted(names), before, {name: at for name, at in since.items() if at})


def _fingerprints(ca: Path) -> list[str]:
    """Empty where it cannot be told; then nobody is enrolled here."""
    try:
        return [anchors.fingerprint(each) for each in anchors.of_file(ca)]
    except ConfigError:
        return []
