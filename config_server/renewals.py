"""When a certificate may be renewed. Pure: it remembers what this process issued, and is told the time.

A daemon renews when a third of the life is left, by its own clock. A thief who renews without end would leave rows and
certificates without end, so what was issued is not renewed for the first half of that time, by the monotonic clock here: no clock
that is wrong, there or here, keeps a daemon whose certificate is really due from getting another. (Nothing is remembered over a
restart of this server: that is one renewal more.)

An answer may be lost, so whoever asks again with the same certificate gets the same answer, as long as that one serves; one that
begins in the future, since this host's clock was ahead for a moment, does not.
"""

from __future__ import annotations

import datetime as dt

from cryptography import x509

from config_server.ca import BACKDATED
from config_server.clock import SECOND_NS
from shared.errors import RenewalNotDueError


def _wait_s(certificate: x509.Certificate) -> float:
    """How long after its issue nobody honest renews it."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return max(0.0, (life * 2 / 3 - BACKDATED).total_seconds()) / 2


class Renewals:
    def __init__(self) -> None:
        self._not_before_ns: dict[int, int] = {}
        """Serial number → when it may be renewed (monotonic)."""
        self._answers: dict[int, x509.Certificate] = {}
        """Serial number → what it was renewed with."""

    def issued(self, certificate: x509.Certificate, renewed: int, now_ns: int) -> None:
        """`renewed`: the serial number of what it takes the place of; 0 for none."""
        for serial in [serial for serial, until_ns in self._not_before_ns.items() if until_ns <= now_ns]:
            del self._not_before_ns[serial]
        kept = {
            serial: answer
            for serial, answer in self._answers.items()
            if answer.serial_number in self._not_before_ns
        }
        self._answers = kept
        self._not_before_ns[certificate.serial_number] = now_ns + int(_wait_s(certificate) * SECOND_NS)
        if renewed:
            self._answers[renewed] = certificate

    def again(self, serial: int, time: dt.datetime) -> x509.Certificate | None:
        """The answer that this certificate was given already, while it serves."""
        answer = self._answers.get(serial)
        if answer is None:
            return None
        left = (answer.not_valid_after_utc - answer.not_valid_before_utc) / 3
        return answer if answer.not_valid_before_utc <= time < answer.not_valid_after_utc - left else None

    def check(self, serial: int, name: str, now_ns: int) -> None:
        """Raises RenewalNotDueError."""
        if self._not_before_ns.get(serial, now_ns) > now_ns:
            raise RenewalNotDueError(f"The certificate of {name} was not renewed")
