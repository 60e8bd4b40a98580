"""Who gets another certificate before a third of its life is left: nobody, unless a clock was wrong when it was issued."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from config_server.identity.ca import CertificateAuthority
from config_server.rules.clock import SECOND_NS
from config_server.rules.renewals import Renewals
from shared.errors import RenewalNotDueError
from shared.vocabulary import Role

DAY = dt.timedelta(days=1)
DAY_NS = 86400 * SECOND_NS
NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.open(tmp_path)


def issued(ca: CertificateAuthority, at: dt.datetime) -> tuple[Renewals, x509.Certificate]:
    """A certificate of 30 days, by a server whose clock shows that; its monotonic clock begins then."""
    renewals = Renewals()
    certificate = ca.issue(KEY, Role.AGENT, "web1", [], 30 * DAY, at)
    renewals.issued(certificate, 0, 0)
    return renewals, certificate


def test_a_new_certificate_is_renewed_by_the_time_that_passes_here_and_not_before(
    ca: CertificateAuthority,
) -> None:
    renewals, certificate = issued(ca, NOW)
    with pytest.raises(RenewalNotDueError):
        renewals.check(certificate.serial_number, "agent:web1", NOW, 0)
    with pytest.raises(RenewalNotDueError):
        renewals.check(certificate.serial_number, "agent:web1", NOW + 9 * DAY, 9 * DAY_NS)
    renewals.check(certificate.serial_number, "agent:web1", NOW + 10 * DAY, 10 * DAY_NS)


@pytest.mark.parametrize("wrong", [-25 * DAY, 25 * DAY], ids=["behind", "ahead"])
def test_what_was_issued_by_a_clock_that_was_wrong_is_renewed_as_soon_as_that_is_right(
    ca: CertificateAuthority, wrong: dt.timedelta
) -> None:
    renewals, certificate = issued(ca, NOW + wrong)
    with pytest.raises(RenewalNotDueError):
        renewals.check(certificate.serial_number, "agent:web1", NOW + wrong, 0)
    renewals.check(certificate.serial_number, "agent:web1", NOW, 0)


def test_a_certificate_of_which_nothing_is_remembered_is_renewed(ca: CertificateAuthority) -> None:
    renewals, _ = issued(ca, NOW)
    renewals.check(1, "agent:web1", NOW, 0)


def test_a_restart_forgets_no_wait_and_no_answer_and_makes_none_longer(ca: CertificateAuthority) -> None:
    _, certificate = issued(ca, NOW)
    serial = certificate.serial_number
    for age, waits in (
        (2 * DAY, 8),
        (9.9 * DAY, 0.1),
        (-3 * DAY, 10),
    ):  # the last: that clock went back since
        renewals = Renewals()
        renewals.recovered(certificate, 7, age.total_seconds(), 0)
        assert renewals.again(7, NOW) == certificate
        with pytest.raises(RenewalNotDueError):
            renewals.check(serial, "agent:web1", NOW, int((waits - 0.01) * DAY_NS))
        renewals.check(serial, "agent:web1", NOW, int((waits + 0.01) * DAY_NS))
        renewals.check(serial, "agent:web1", NOW + 20 * DAY, 0)  # due by the clock of day
    renewals = Renewals()
    renewals.recovered(certificate, 7, (11 * DAY).total_seconds(), 0)
    renewals.check(serial, "agent:web1", NOW + 11 * DAY, 0)
