"""The config server's own certificate while its disk is full or read-only, or what lies there is something else."""

from __future__ import annotations

import datetime as dt
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from config_server.config import ConfigServerConfig
from config_server.identity import own_certificate
from config_server.identity.ca import CertificateAuthority, hosts_of
from shared.errors import ConfigError, HostClockError, IdentityFileError
from shared.trust import identity
from shared.vocabulary import Role
from tests.config_parts import config_for
from tests.small_fs import fill, remount, small_fs

SOON = 0.0
"""Days: it is always due."""


@pytest.fixture
def config(tmp_path: Path) -> Iterator[ConfigServerConfig]:
    config = config_for(tmp_path, certificate_days=SOON)
    with small_fs(config.data_dir, 128 << 10):
        yield config


def hinder(folder: Path, how: str) -> None:
    if how == "full":
        fill(folder)
    else:
        remount(folder, "ro")


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_certificate_that_still_serves_is_kept_while_no_new_one_can_be_written(
    config: ConfigServerConfig, how: str
) -> None:
    ca = CertificateAuthority.open(config.data_dir)
    files, _ = own_certificate.ready(config, ca)
    before = files.cert.read_bytes()
    hinder(config.data_dir, how)
    again, kept = own_certificate.ready(config, ca)
    assert again == files
    assert isinstance(kept, IdentityFileError)
    assert files.cert.read_bytes() == before
    if how == "full":
        (config.data_dir / "ballast").unlink()
    else:
        remount(config.data_dir, "rw")
    own_certificate.ready(config, ca)
    assert files.cert.read_bytes() != before


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_without_any_certificate_that_is_a_named_error(config: ConfigServerConfig, how: str) -> None:
    ca = CertificateAuthority.open(config.data_dir)
    hinder(config.data_dir, how)
    with pytest.raises(IdentityFileError, match=r"server\.key"):
        own_certificate.ready(config, ca)


def test_what_cannot_serve_is_replaced(config: ConfigServerConfig, tmp_path: Path) -> None:
    lasting = msgspec.structs.replace(config, certificate_days=30.0)
    ca = CertificateAuthority.open(config.data_dir)
    files, _ = own_certificate.ready(lasting, ca)
    good = files.cert.read_bytes()
    assert own_certificate.ready(lasting, ca) == (files, None)
    assert files.cert.read_bytes() == good
    (tmp_path / "other").mkdir()
    foreign = CertificateAuthority.open(tmp_path / "other")
    for spoil in (
        lambda: files.cert.write_text("nonsense"),
        lambda: files.cert.write_bytes(b"\xff\xfe"),
        lambda: files.cert.unlink(),
        lambda: files.key.unlink(),
        lambda: own_certificate.ready(lasting, foreign),
        lambda: own_certificate.ready(msgspec.structs.replace(lasting, name="cs2"), ca),
    ):
        spoil()
        own_certificate.ready(lasting, ca)
        found = identity.only_certificate(files.cert.read_text())
        found.verify_directly_issued_by(ca.certificate)
        assert identity.name_of(found) == "config-server:cs1"
        assert found.public_key() == identity.key_of(files).public_key()


def test_a_certificate_from_a_time_when_the_clock_was_ahead_is_replaced(config: ConfigServerConfig) -> None:
    lasting = msgspec.structs.replace(config, certificate_days=30.0)
    ca = CertificateAuthority.open(config.data_dir)
    files, _ = own_certificate.ready(lasting, ca)
    key, hosts = (
        identity.key_of(files).public_key(),
        hosts_of(identity.only_certificate(files.cert.read_text())),
    )
    ahead = dt.datetime.now(dt.UTC) + dt.timedelta(days=40)
    life = dt.timedelta(days=30)
    files.cert.write_bytes(
        identity.pem_of(ca.issue(key, Role.CONFIG_SERVER, "cs1", hosts, life, ahead, begins=ahead))
    )
    own_certificate.ready(lasting, ca)
    assert identity.only_certificate(files.cert.read_text()).not_valid_before_utc <= dt.datetime.now(dt.UTC)


def test_another_spelling_of_an_address_is_no_reason_for_another_certificate(
    config: ConfigServerConfig,
) -> None:
    spelled = msgspec.structs.replace(
        config, certificate_days=30.0, hosts=["2001:DB8:0::1", "::1", "CS.example.com"]
    )
    ca = CertificateAuthority.open(config.data_dir)
    before = own_certificate.ready(spelled, ca)[0].cert.read_bytes()
    assert own_certificate.ready(spelled, ca)[0].cert.read_bytes() == before
    assert {"2001:db8::1", "CS.example.com"} <= set(hosts_of(identity.only_certificate(before.decode())))


def test_a_host_whose_name_no_certificate_can_carry_has_one_all_the_same(
    config: ConfigServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "b\u00fccher..host")
    own_certificate.ready(config, CertificateAuthority.open(config.data_dir))


def test_a_key_that_is_none_is_named_and_never_replaced(config: ConfigServerConfig) -> None:
    ca = CertificateAuthority.open(config.data_dir)
    files, _ = own_certificate.ready(config, ca)
    files.key.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"server\.key"):
        own_certificate.ready(config, ca)
    assert files.key.read_text() == "nonsense"


class Clock(dt.datetime):
    """As the config server's clock shows it."""

    shift = dt.timedelta()

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
        return dt.datetime.fromtimestamp(time.time(), tz) + cls.shift


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(Clock, "shift", dt.timedelta())
    monkeypatch.setattr(
        own_certificate, "dt", SimpleNamespace(datetime=Clock, timedelta=dt.timedelta, UTC=dt.UTC)
    )
    return Clock


@pytest.mark.parametrize("days", [3650 - 60, 365, 60])
def test_a_certificate_that_a_clock_years_ahead_makes_is_good_for_those_whose_clocks_are_right(
    config: ConfigServerConfig, clock: type[Clock], days: int
) -> None:
    lasting = msgspec.structs.replace(config, certificate_days=30.0)
    ca = CertificateAuthority.open(config.data_dir)
    files, _ = own_certificate.ready(lasting, ca)
    before = files.cert.read_bytes()
    clock.shift = dt.timedelta(days=days)
    own_certificate.ready(lasting, ca)
    ahead = files.cert.read_bytes()
    assert ahead != before, "the old one is out of date by this clock"
    identity.check_certificate(files)
    clock.shift = dt.timedelta()
    assert own_certificate.ready(lasting, ca) == (files, None)
    assert files.cert.read_bytes() == ahead


def test_a_clock_from_before_the_ca_is_said_and_the_certificate_stays(
    config: ConfigServerConfig, clock: type[Clock]
) -> None:
    ca = CertificateAuthority.open(config.data_dir)
    files, _ = own_certificate.ready(config, ca)
    before = files.cert.read_bytes()
    clock.shift = dt.timedelta(days=-3650)
    _, wrong = own_certificate.ready(config, ca)
    assert isinstance(wrong, HostClockError)
    assert "its CA was made at" in wrong.cause
    assert files.cert.read_bytes() == before
    files.cert.unlink()
    with pytest.raises(HostClockError):
        own_certificate.ready(config, ca)
