"""The CA's two files while it is renewed: whoever reads them at any moment has a CA that everybody trusts."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from config_server.identity import ca_files
from config_server.identity.ca import CertificateAuthority
from config_server.rules.ca_renewal import Stage
from shared.errors import CaFilesError
from shared.trust import identity


class Cut(Exception):
    pass


ORDER = (Stage.MADE, Stage.SWITCHED, Stage.DROPPED)


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("stage", ORDER)
def test_cut_off_between_two_files_they_are_a_ca_and_the_next_run_brings_them_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage, after: int
) -> None:
    old, new = CertificateAuthority.open(tmp_path), CertificateAuthority.made()
    if stage is not Stage.MADE:
        ca_files.put_beside(tmp_path, new)
        for before in ORDER[: ORDER.index(stage)]:
            ca_files.brought(tmp_path, before, new.certificate, [old.certificate])
    written: list[str] = []
    really = identity.write

    def cut(path: Path, data: bytes, *, mode: int) -> None:
        if len(written) == after:
            raise Cut
        written.append(path.name)
        really(path, data, mode=mode)

    def bring() -> CertificateAuthority:
        if stage is Stage.MADE and not CertificateAuthority.read(tmp_path).has_key_of(new.certificate):
            ca_files.put_beside(tmp_path, new)
        return ca_files.brought(tmp_path, stage, new.certificate, [old.certificate])

    with monkeypatch.context() as patched:
        patched.setattr(identity, "write", cut)
        with contextlib.suppress(Cut):
            bring()
    between = CertificateAuthority.read(tmp_path)
    assert between.certificate in (old.certificate, new.certificate)
    assert between.certificate in between.trusted
    if stage is not Stage.DROPPED:
        assert old.certificate in between.trusted, "daemons have certificates of it"
    if stage is not Stage.MADE:
        assert new.certificate in between.trusted
    there = bring()
    assert there.is_as(CertificateAuthority.read(tmp_path))
    assert there.certificate == (old if stage is Stage.MADE else new).certificate
    assert len(there.trusted) == len(there.keys) == (1 if stage is Stage.DROPPED else 2)
    assert ca_files.brought(tmp_path, stage, new.certificate, [old.certificate]).is_as(there), (
        "a second time it is nothing"
    )


def test_without_the_new_key_nothing_is_changed_and_given_up_nothing_of_it_is_left(tmp_path: Path) -> None:
    old, new = CertificateAuthority.open(tmp_path), CertificateAuthority.made()
    before = [(tmp_path / name).read_bytes() for name in ("ca.key", "ca.pem")]
    for stage in ORDER:
        assert ca_files.brought(tmp_path, stage, new.certificate, [old.certificate]).is_as(old)
    ca_files.put_beside(tmp_path, new)
    ca_files.brought(tmp_path, Stage.MADE, new.certificate, [old.certificate])
    ca_files.brought(tmp_path, Stage.GIVEN_UP, new.certificate, [old.certificate])
    assert [(tmp_path / name).read_bytes() for name in ("ca.key", "ca.pem")] == before
    ca_files.put_beside(tmp_path, new)
    ca_files.brought(tmp_path, Stage.SWITCHED, new.certificate, [old.certificate])
    assert (
        ca_files.brought(tmp_path, Stage.GIVEN_UP, new.certificate, [old.certificate]).certificate
        == new.certificate
    )


@pytest.mark.parametrize("stage", list(Stage))
def test_what_the_database_does_not_know_is_left_as_it_is(tmp_path: Path, stage: Stage) -> None:
    """It was put back from before another renewal, by whose key certificates were issued since."""
    first, later = CertificateAuthority.open(tmp_path), CertificateAuthority.made()
    ca_files.put_beside(tmp_path, later)
    ca_files.brought(tmp_path, Stage.SWITCHED, later.certificate, [first.certificate])
    before = [(tmp_path / name).read_bytes() for name in ("ca.key", "ca.pem")]
    with pytest.raises(CaFilesError, match="ahead of the database"):
        ca_files.brought(tmp_path, stage, first.certificate, [])
    assert [(tmp_path / name).read_bytes() for name in ("ca.key", "ca.pem")] == before


def test_what_the_old_one_signed_is_known_as_this_installations_also_when_it_is_gone() -> None:
    old, new, other = (CertificateAuthority.made() for _ in range(3))
    ca = old.with_another(new).only(new.certificate)
    assert not ca.has_signed(b"x", old.sign(b"x"))
    ca.former = (old.certificate,)
    assert ca.has_signed(b"x", old.sign(b"x"))
    assert ca.has_signed(b"x", new.sign(b"x"))
    assert not ca.has_signed(b"x", other.sign(b"x"))


def test_a_key_file_that_is_cut_or_of_another_kind_is_none(tmp_path: Path) -> None:
    ca = CertificateAuthority.open(tmp_path)
    key, pem = (tmp_path / "ca.key").read_bytes(), ca.pem.encode()
    for bad in (b"", b"x", key[:60], key + key[:60]):
        with pytest.raises(ValueError):
            CertificateAuthority.loaded(bad, pem)
