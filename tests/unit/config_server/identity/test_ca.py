"""The certificate authority."""

from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from config_server.identity.ca import CertificateAuthority, check_host, hosts_of, pem_of
from config_server.store import sqlite
from config_server.store.files import DATABASE_FILE
from shared.control import enrol
from shared.errors import CertificateExpiredError, ConfigError, HostClockError, RequestError, UnderstudyError
from shared.trust import identity
from shared.trust.tls import TlsFiles
from shared.vocabulary import Role

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def test_a_ca_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    first, second = CertificateAuthority.open(tmp_path), CertificateAuthority.open(tmp_path)
    assert first.pem == second.pem
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600


def test_a_start_that_was_cut_off_between_key_and_certificate_is_repaired(tmp_path: Path) -> None:
    CertificateAuthority.open(tmp_path)
    (tmp_path / "ca.pem").unlink()
    CertificateAuthority.open(tmp_path)
    CertificateAuthority.open(tmp_path)


def test_a_ca_that_is_gone_is_not_replaced_beside_the_database_of_its_daemons(tmp_path: Path) -> None:
    CertificateAuthority.open(tmp_path)
    sqlite.connect(tmp_path / DATABASE_FILE).close()
    pem = (tmp_path / "ca.pem").read_bytes()
    for also in ([], ["ca.key"]):
        for name in ("ca.pem", *also):
            (tmp_path / name).unlink()
        with pytest.raises(ConfigError, match=r"Restore a backup"):
            CertificateAuthority.open(tmp_path)
        assert not (tmp_path / "ca.pem").exists()
        (tmp_path / "ca.pem").write_bytes(pem)


def test_a_key_of_another_ca_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        CertificateAuthority.open(tmp_path / name)
    (tmp_path / "a/ca.key").write_bytes((tmp_path / "b/ca.key").read_bytes())
    with pytest.raises(ConfigError, match="does not belong"):
        CertificateAuthority.open(tmp_path / "a")
    (tmp_path / "a/ca.key").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="could not be opened"):
        CertificateAuthority.open(tmp_path / "a")


def test_a_certificate_carries_role_name_hosts_and_its_life(tmp_path: Path) -> None:
    ca = CertificateAuthority.open(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    hosts = ["ps1.example.com", "192.0.2.1", "::1"]
    issued = ca.issue(key.public_key(), Role.PROCESS_SERVER, "ps1", hosts, dt.timedelta(days=30), NOW)
    assert issued.subject.rfc4514_string() == "CN=process-server:ps1"
    assert hosts_of(issued) == hosts
    assert issued.not_valid_after_utc == NOW + dt.timedelta(days=30)
    assert issued.not_valid_before_utc < NOW
    issued.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.pem.encode()))
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    without = ca.issue(key.public_key(), Role.AGENT, "web1", [], dt.timedelta(days=30), NOW)
    assert hosts_of(without) == []


def test_names_in_a_request_are_ignored_and_other_keys_refused(tmp_path: Path) -> None:
    ca = CertificateAuthority.open(tmp_path)

    def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "operator")])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        return csr.public_bytes(serialization.Encoding.PEM).decode()

    key = ec.generate_private_key(ec.SECP256R1())
    assert ca.public_key_of(request(key)) == key.public_key()
    with pytest.raises(RequestError, match="P-256"):
        ca.public_key_of(request(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(RequestError, match="P-256"):
        ca.public_key_of(request(rsa.generate_private_key(65537, 2048)))
    with pytest.raises(RequestError, match="could not be read"):
        ca.public_key_of("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")


@pytest.mark.parametrize(
    "host",
    ["", "a b", "user@host", "https://x", "x:443", "a" * 254, "a..b", "\u00fc", "10.0.0.0/8", "fe80::1%eth0"],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(RequestError, match="cannot be in a certificate"):
        check_host(host)


@pytest.mark.parametrize(("left_s", "due"), [(2001, False), (1999, True), (-1, True)])
def test_renewal_is_due_when_a_third_of_the_life_is_left(tmp_path: Path, left_s: int, due: bool) -> None:
    ca = CertificateAuthority.open(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    # Begins 5 minutes early: 5700 s + 300 s are 6000 s of life.
    issued = ca.issue(key.public_key(), Role.AGENT, "web1", [], dt.timedelta(seconds=5700), NOW)
    path = tmp_path / "cert.pem"
    path.write_text(pem_of(issued))
    assert identity.renewal_is_due(path, NOW.timestamp() + 5700 - left_s) is due


@pytest.mark.parametrize(("left_s", "soon"), [(668, False), (665, True), (-1, True)])
def test_a_certificate_ends_soon_when_a_ninth_of_its_life_is_left(
    tmp_path: Path, left_s: int, soon: bool
) -> None:
    ca = CertificateAuthority.open(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    issued = ca.issue(key.public_key(), Role.AGENT, "web1", [], dt.timedelta(seconds=5700), NOW)
    path = tmp_path / "cert.pem"
    path.write_text(pem_of(issued))
    assert identity.ends_soon(path, NOW.timestamp() + 5700 - left_s) is soon


def test_a_certificate_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    path.write_text("nonsense")
    with pytest.raises(ConfigError):
        identity.renewal_is_due(path)
    with pytest.raises(ConfigError):
        identity.check_certificate(TlsFiles(cert=path, key=path, ca=path))


def test_tokens_survive_a_copy_with_spaces_around_and_nothing_else() -> None:
    token, hash_ = enrol.new_token(b"ca")
    parts = enrol.parse_token(f"  {token}\n")
    assert enrol.token_hash(parts.secret) == hash_
    assert parts.fingerprint == enrol.fingerprint(b"ca")


@pytest.mark.parametrize(
    ("offset_days", "error", "words"),
    [
        (-3650, HostClockError, "before"),
        (45, CertificateExpiredError, "this host's clock shows"),
        (3650, HostClockError, "or this daemon was off for long"),
    ],
)
def test_a_clock_that_makes_certificates_seem_out_of_date_is_named(
    tmp_path: Path, offset_days: int, error: type[UnderstudyError], words: str
) -> None:
    ca = CertificateAuthority.open(tmp_path)
    files = identity.files_in(tmp_path)
    files.key.write_bytes(identity.new_key_pem())
    files.ca.write_text(ca.pem)
    now = dt.datetime.now(dt.UTC)
    made = ca.issue(identity.key_of(files).public_key(), Role.AGENT, "web1", [], dt.timedelta(days=30), now)
    files.cert.write_bytes(identity.pem_of(made))
    identity.check_certificate(files, now.timestamp())
    with pytest.raises(error) as caught:
        identity.check_certificate(files, now.timestamp() + offset_days * 86_400)
    assert words in str(caught.value)
    assert identity.renewal_is_due(files.cert, now.timestamp() + offset_days * 86_400)
    said = identity.explained(
        files, CertificateExpiredError("No session", cause="the peer says that it has expired")
    )
    assert "our own is valid; it lasts from" in said.cause, "it is well by our clock"
    assert "other host's clock" in said.action
