"""When a certificate may be renewed. Pure: it remembers what this process issued, and is told the time.

A daemon renews when a third of the life is left, by its own clock. A thief who renews without end would leave rows and
certificates without end, so what was issued is not renewed for the first half of that time, by the monotonic clock here, unless it is
due by the time of day here as well. No clock that was wrong, there or here, keeps a daemon whose certificate is really due from getting
another: what this host issued while its clock was weeks behind ends soon after it is set right, and is due at once. So whoever is refused
differs from this host about the time *now*, or steals.

A restart of this server brings back what was issued from the database (`recovered`). How long ago that was only the clock of day can say,
so no wait gets longer by it than it was at first, and what is due by that clock is due.

An answer may be lost, so whoever asks again with the same certificate gets the same answer, as long as that one serves; one that
begins in the future, since this host's clock was ahead for a moment, does not.
"""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

from cryptography import x509

from config_server.rules.certificates import BACKDATED
from config_server.rules.clock import SECOND_NS
from shared.errors import RenewalNotDueError


def _wait_s(certificate: x509.Certificate) -> float:
    """How long after its issue nobody honest renews it."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return max(0.0, (life * 2 / 3 - BACKDATED).total_seconds()) / 2


def _due(certificate: x509.Certificate) -> dt.datetime:
    """When a third of its life is left."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return ends - (ends - begins) / 3


class _Issued(NamedTuple):
    until_ns: int
    """When it may be renewed (monotonic)."""
    begins: dt.datetime
    due: dt.datetime


class Renewals:
    def __init__(self) -> None:
        self._issued: dict[int, _Issued] = {}
        """By serial number."""
        self._answers: dict[int, x509.Certificate] = {}
        """Serial number → what it was renewed with."""

    def issued(self, certificate: x509.Certificate, renewed: int, now_ns: int) -> None:
        """`renewed`: the serial number of what it takes the place of; 0 for none."""
        for serial in [serial for serial, issued in self._issued.items() if issued.until_ns <= now_ns]:
            del self._issued[serial]
        kept = {
            serial: answer for serial, answer in self._answers.items() if answer.serial_number in self._issued
        }
        self._answers = kept
        self._note(certificate, renewed, now_ns + int(_wait_s(certificate) * SECOND_NS))

    def recovered(self, certificate: x509.Certificate, renewed: int, age_s: float, now_ns: int) -> None:
        """It was issued before the last start, `age_s` ago by the clock of day."""
        wait_s = _wait_s(certificate)
        left_s = min(wait_s, wait_s - age_s)
        if left_s > 0:
            self._note(certificate, renewed, now_ns + int(left_s * SECOND_NS))

    def _note(self, certificate: x509.Certificate, renewed: int, until_ns: int) -> None:
        self._issued[certificate.serial_number] = _Issued(
            until_ns, certificate.not_valid_before_utc, _due(certificate)
        )
        if renewed:
            self._answers[renewed] = certificate

    def again(self, serial: int, time: dt.datetime) -> x509.Certificate | None:
        """The answer that this certificate was given already, while it serves."""
        answer = self._answers.get(serial)
        if answer is None:
            return None
        return answer if answer.not_valid_before_utc <= time < _due(answer) else None

    def check(self, serial: int, name: str, time: dt.datetime, now_ns: int) -> None:
        """Raises RenewalNotDueError."""
        issued = self._issued.get(serial)
        if issued is not None and now_ns < issued.until_ns and issued.begins <= time < issued.due:
            raise RenewalNotDueError(f"The certificate of {name} was not renewed")
