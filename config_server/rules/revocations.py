"""One revocation, or readmission, as it is told: between the database and storage. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from config_server.rules.certificates import BACKDATED
from config_server.rules.clock import SECOND_NS

FOLDER: Final = "revoked/"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    subject: str
    """A serial number (hexadecimal), or ROLE:NAME."""
    reason: str = ""
    who: str = ""
    """Who revoked it; empty where only the database's row was left to tell."""
    revoked_ns: int
    """When; of a readmission, when that was."""
    begins_s: int | None = None
    """Of a readmission: certificates of the name that begin (Unix seconds) then or later are good again."""
    mark: str = ""
    """Of a database that was put back, and not compared with storage yet, when it said this (restored.py)."""

    @property
    def is_name(self) -> bool:
        return ":" in self.subject

    @property
    def folder(self) -> str:
        """Of a name: where all its records lie."""
        return f"{FOLDER}{self.subject.replace(':', '/', 1)}"

    @property
    def blob(self) -> str:
        last = f"/{self.revoked_ns}" if self.is_name else ""
        if self.begins_s is not None:
            last += "-readmitted"
        return f"{self.folder}{last}.json"

    @property
    def before_s(self) -> int:
        """Of a name: certificates that begin (Unix seconds) before then are refused. Whatever was issued until it was revoked does."""
        return self.revoked_ns // SECOND_NS + 1 - int(BACKDATED.total_seconds())


def newest(blobs: Iterable[str]) -> dict[str, int]:
    """Of each name's folder the time of its last record, by what the blobs are called."""
    found: dict[str, int] = {}
    for blob in blobs:
        folder, _, last = blob.rpartition("/")
        at_ns = last.removesuffix(".json").removesuffix("-readmitted")
        if at_ns.isdecimal():
            found[folder] = max(found.get(folder, 0), int(at_ns[:30]))
    return found
