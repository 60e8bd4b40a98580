"""How well a machine, or a daemon, is: the worst of what is wrong with it. Pure.

Health is apart from the state: a machine that is replicated for the first time is well, one that is ordered while its uploads are
stopped is not. What is wrong comes from reports, and from what follows from them (view.py), so health is better as soon as that is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from shared.vocabulary import Health, Severity

_OF: Final = {
    Severity.INFO: Health.NORMAL,
    Severity.WARNING: Health.WARNING,
    Severity.ERROR: Health.CRITICAL,
    Severity.CRITICAL: Health.CRITICAL,
}


class Wrong(Protocol):
    @property
    def severity(self) -> Severity: ...


def worst(found: Iterable[Wrong]) -> Health:
    severities = (each.severity for each in found)
    return _OF[max(severities, key=lambda severity: severity.rank, default=Severity.INFO)]
