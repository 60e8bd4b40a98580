"""The config server's own certificate while its disk is full or read-only, or what lies there is something else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from config_server import own_certificate
from config_server.ca import CertificateAuthority, hosts_of
from config_server.config import ConfigServerConfig
from shared import identity
from shared.errors import ConfigError, HostClockError, IdentityFileError
from tests.config_parts import config_for
from tests.small_fs import fill, remount, small_fs

SOON = 0.001
"""Days: its begin lies five minutes back, so less than a third of its life is left."""


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


def test_a_key_that_is_none_is_named_and_never_replaced(config: ConfigServerConfig) -> None:
    ca = CertificateAuthority.open(config.data_dir)
    files, _ = own_certificate.ready(config, ca)
    files.key.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"server\.key"):
        own_certificate.ready(config, ca)
    assert files.key.read_text() == "nonsense"


def issue(config: ConfigServerConfig, ca: CertificateAuthority, now: dt.datetime) -> bytes:
    """Puts a certificate of another time there."""
    files, _ = own_certificate.ready(config, ca)
    life = dt.timedelta(days=30)
    hosts = hosts_of(identity.only_certificate(files.cert.read_text()))
    made = ca.issue(identity.key_of(files).public_key(), "config-server", "cs1", hosts, life, now)
    files.cert.write_bytes(identity.pem_of(made))
    return files.cert.read_bytes()


def test_a_certificate_that_a_clock_years_ahead_made_is_replaced_when_the_clock_is_right(
    config: ConfigServerConfig,
) -> None:
    lasting = msgspec.structs.replace(config, certificate_days=30.0)
    ca = CertificateAuthority.open(config.data_dir)
    ahead = issue(lasting, ca, dt.datetime.now(dt.UTC) + dt.timedelta(days=3650))
    files, _ = own_certificate.ready(lasting, ca)
    assert files.cert.read_bytes() != ahead
    identity.check_certificate(files)


def test_a_clock_that_is_not_believed_replaces_nothing_that_may_be_good(config: ConfigServerConfig) -> None:
    lasting = msgspec.structs.replace(config, certificate_days=30.0)
    ca = CertificateAuthority.open(config.data_dir)
    seems_old = issue(lasting, ca, dt.datetime.now(dt.UTC) - dt.timedelta(days=3650))
    files, _ = own_certificate.ready(lasting, ca, believe_clock=False)
    assert files.cert.read_bytes() == seems_old
    own_certificate.ready(lasting, ca)
    identity.check_certificate(files)


def test_a_clock_from_before_the_ca_is_said_and_the_certificate_stays(
    config: ConfigServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = CertificateAuthority.open(config.data_dir)
    files, _ = own_certificate.ready(config, ca)
    before = files.cert.read_bytes()

    class Past(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
            return dt.datetime(1970, 1, 2, tzinfo=tz)

    monkeypatch.setattr(dt, "datetime", Past)
    _, wrong = own_certificate.ready(config, ca)
    assert isinstance(wrong, HostClockError)
    assert "1970-01-02" in wrong.cause
    assert files.cert.read_bytes() == before
    files.cert.unlink()
    with pytest.raises(HostClockError):
        own_certificate.ready(config, ca)
