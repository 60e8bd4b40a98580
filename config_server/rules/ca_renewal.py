"""How far the renewal of the CA is, what each server's files are to be then, and who is waited for (docs/decisions/0035). Pure.

**Nobody is locked out, whatever comes between what.** Each part (daemon or config server) goes through four states, in this order alone:

    1  certificate of the old CA, trusts the old one
    2  certificate of the old CA, trusts both
    3  certificate of the new CA, trusts both
    4  certificate of the new CA, trusts the new one

Two that are at most one state apart accept each other, in both directions (tests/unit/shared/trust/test_anchors.py tries all pairs by real
handshakes). Nobody goes to 3 before all are in 2, since nobody issues by the new CA before the switch; and nobody to 4 before all are in 3,
since nothing is said to be gone before. So all are at any time in two states that are neighbours, and nobody needs to wait for a peer, nor
to be there while another one goes on. Who takes part: whoever has a certificate that has not expired, and was not revoked. What counts is
what he said himself with his last report, which he says only of what is on his disk and in his contexts: so whoever is away, or whose disk
takes nothing, holds the job. Nothing is taken from a daemon but what is named as gone, so a config server that lags behind, or was put back
from the state of a moment before, moves nobody back.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from config_server.rules.clock import SECOND_NS
from shared.status import Report

KIND: Final = "ca-renewal"
LANE: Final = "ca"
"""Of no machine: the whole installation has one."""
LONG_EXPIRED_NS: Final = 366 * 86_400 * SECOND_NS
"""Whose certificate ended so long ago takes part no more. Who has just expired does: this host's clock may be ahead for a moment, and what
then follows cannot be taken back."""
_NAMED: Final = 20


class Stage(enum.StrEnum):
    """Of a renewal; what the files of each config server are to be."""

    MADE = "made"
    """The new key and certificate lie beside the old ones, and both certificates are trusted."""
    SWITCHED = "switched"
    """The new one signs; the old one is trusted still."""
    DROPPED = "dropped"
    """Nothing of the old one is left."""
    GIVEN_UP = "given-up"
    """Nothing of the new one is left."""


class Renewal(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    job: str
    stage: Stage
    new: str
    """The new certificate (PEM)."""
    old: str
    """All that were trusted when it was made (PEM)."""
    by: str = ""
    """Which config server made it (its id among others; empty: the only one): until it has said so itself nobody knows that it has the
    key."""


class Has(msgspec.Struct, frozen=True):
    """What a config server has in its files, and serves by: SHA-256 (hexadecimal) of certificates."""

    signer: str = ""
    trusted: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    """Those of which it has the private key."""
    issuer: str = ""
    """Of the certificate that it presents itself."""
    wrong: str = ""
    """Why it could not use its files, or not go by them, when it tried last: what it had before that says nothing then."""


class Server(NamedTuple):
    """A config server that is there."""

    id: str
    name: str
    has: Has


def is_lost(renewal: Renewal, new: str, mine: str, servers: Sequence[Server]) -> bool:
    """Whether nobody has the new key: who made it was killed, or failed, before it was on his disk. `mine`: the id of who asks. Another
    one that lives may just not have said yet that he has it."""
    if renewal.stage is not Stage.MADE or any(new in server.has.keys for server in servers):
        return False
    return renewal.by == mine or renewal.by not in [server.id for server in servers]


def is_at(has: Has, stage: Stage, new: str) -> bool:
    """Whether a server is where this stage wants it. `new`: the fingerprint."""
    if has.wrong:
        return False
    match stage:
        case Stage.MADE:
            return new in has.trusted and new in has.keys
        case Stage.SWITCHED:
            return new == has.signer == has.issuer
        case Stage.DROPPED:
            return has == Has(new, (new,), (new,), new)
        case Stage.GIVEN_UP:
            return new not in has.trusted and new not in has.keys


class Lacking(NamedTuple):
    of: int
    """How many take part."""
    words: Sequence[str]
    """Who is not there yet, and why, if there is more to say."""

    @property
    def share(self) -> float:
        return 1 - len(self.words) / self.of if self.of else 1.0

    def said(self, what: str) -> str:
        more = f" and {len(self.words) - _NAMED} more" if len(self.words) > _NAMED else ""
        return f"{self.of - len(self.words)} of {self.of} {what}; not yet: {', '.join(self.words[:_NAMED])}{more}"


def lacking_trust(parties: Iterable[str], reports: Mapping[str, Report], new: str) -> Lacking:
    """`parties`: ROLE:NAME."""
    return _lacking(parties, reports, lambda report: new in report.anchors)


def lacking_certificate(parties: Iterable[str], reports: Mapping[str, Report], new: str) -> Lacking:
    return _lacking(parties, reports, lambda report: report.issuer == new)


def still_trusting(parties: Iterable[str], reports: Mapping[str, Report], gone: Iterable[str]) -> Lacking:
    former = set(gone)
    return _lacking(
        parties, reports, lambda report: bool(report.anchors) and former.isdisjoint(report.anchors)
    )


def _lacking(
    parties: Iterable[str], reports: Mapping[str, Report], is_there: Callable[[Report], bool]
) -> Lacking:
    names, words = sorted(parties), []
    for name in names:
        report = reports.get(name)
        if report is None:
            words.append(f"{name} (has not reported)")
        elif not report.anchors:
            words.append(f"{name} (an earlier version: upgrade it)")
        elif not is_there(report):
            words.append(name)
    return Lacking(len(names), words)
