"""Two anchors at a time: what is taken of what a config server names, and that no two ends that are one step apart refuse each other."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from shared.api.certificates import Trust
from shared.errors import ConfigError, TrustNotTakenError
from shared.trust import anchors, identity, tls
from shared.trust.tls import TlsFiles
from tests.pki import TestCa
from tests.unit.shared.trust.test_tls import Pair


@pytest.fixture
def cas(tmp_path: Path) -> tuple[TestCa, TestCa]:
    return TestCa(tmp_path, "old"), TestCa(tmp_path, "new")


def only(ca: TestCa) -> anchors.Anchors:
    return anchors.of_file(ca.path)


def told(signer: TestCa, *trusted: TestCa, gone: tuple[TestCa, ...] = ()) -> Trust:
    pem = b"".join(each.path.read_bytes() for each in trusted).decode()
    prints = [anchors.fingerprint(only(each)[0]) for each in (signer, *gone)]
    return Trust(pem=pem, signer=prints[0], gone=prints[1:])


def test_a_file_has_at_least_one_anchor_and_not_any_number(
    cas: tuple[TestCa, TestCa], tmp_path: Path
) -> None:
    old, new = cas
    file = tmp_path / "ca.pem"
    file.write_bytes(old.path.read_bytes() + new.path.read_bytes() + old.path.read_bytes())
    assert anchors.of_file(file) == (*only(old), *only(new))
    many = b"".join(TestCa(tmp_path, f"ca {number}").path.read_bytes() for number in range(5))
    for content in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", many):
        file.write_bytes(content)
        with pytest.raises(ConfigError):
            anchors.of_file(file)


def test_a_daemon_takes_no_anchors_that_would_lock_it_out(cas: tuple[TestCa, TestCa]) -> None:
    old, new = cas
    files = old.issue("agent:web1")
    own = identity.only_certificate(files.cert.read_text())
    both = (*only(old), *only(new))
    assert anchors.merged(only(old), told(old, old, new), own) == both
    assert anchors.merged(both, told(old, old), own) == both, "a server that has not heard takes nothing"
    assert anchors.merged(both, told(old, old, gone=(new,)), own) == only(old)
    for refused in (
        told(new, new, gone=(old,)),  # who issued our own is not among them: renewed first, then dropped
        told(new, old),  # who issues now is not
        told(old, old, gone=(old, new)),
        Trust(pem="", signer=""),
        Trust(pem="é", signer=""),
    ):
        with pytest.raises(TrustNotTakenError):
            anchors.merged(only(old), refused, own)


def test_ends_that_are_one_step_apart_accept_each_other_and_those_that_are_two_apart_do_not(
    cas: tuple[TestCa, TestCa], tmp_path: Path
) -> None:
    """Why the config server waits for all before each step, and nobody has to wait for a peer within one."""
    old, new = cas
    both = tmp_path / "both.pem"
    both.write_bytes(old.path.read_bytes() + new.path.read_bytes())
    steps = ((old, old.path), (old, both), (new, both), (new, new.path))

    def files(name: str) -> list[TlsFiles]:
        return [TlsFiles(cert=f.cert, key=f.key, ca=ca) for by, ca in steps for f in [by.issue(name)]]

    agents = [tls.client_context(each, tls.PROCESS_SERVER) for each in files("agent:web1")]
    servers = [tls.server_context(each) for each in files("process-server:ps1")]
    for mine, agent in enumerate(agents):
        for theirs, server in enumerate(servers):
            if abs(mine - theirs) <= 1:
                Pair(agent, server).shake()
            else:
                with pytest.raises(ssl.SSLError):
                    Pair(agent, server).shake()


def test_an_anchor_comes_and_goes_in_a_context_that_is_in_use_and_no_session_ends(
    cas: tuple[TestCa, TestCa], tmp_path: Path
) -> None:
    old, new = cas
    files, ca = old.issue("process-server:ps1"), tmp_path / "ca.pem"
    files = TlsFiles(cert=files.cert, key=files.key, ca=ca)
    ca.write_bytes(old.path.read_bytes())
    server = tls.server_context(files)
    of_old = old.issue("agent:a")
    by_old = tls.client_context(of_old)
    of_new = new.issue("agent:b")
    by_new = tls.client_context(TlsFiles(cert=of_new.cert, key=of_new.key, ca=old.path))
    begun = Pair(by_old, server)
    begun.shake()
    with pytest.raises(ssl.SSLError):
        Pair(by_new, server).shake()
    ca.write_bytes(old.path.read_bytes() + new.path.read_bytes())
    tls.present(server, tls.read_chain(files))
    Pair(by_old, server).shake()
    Pair(by_new, server).shake()
    ca.write_bytes(new.path.read_bytes())
    tls.present(server, tls.read_chain(files))
    with pytest.raises(ssl.SSLError):
        Pair(by_old, server).shake()
    Pair(by_new, server).shake()
    begun.server.write(b"on")
    assert begun.client.read() == b"on"
