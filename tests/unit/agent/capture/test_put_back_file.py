"""A disks.json that is not gone by is kept, or not written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.capture.bindings import BindingsFile, Bound, read
from agent.capture.put_back_file import PutBackFile
from shared.errors import StateFileError

FORMER = Bound("p", "/dev/p", "wwid:P")
NOW = Bound("p", "/dev/p", "wwid:Q", number=1)


@pytest.fixture
def file(tmp_path: Path) -> BindingsFile:
    """Somebody put it back."""
    BindingsFile(tmp_path).write([FORMER])
    found = BindingsFile(tmp_path)
    assert found.read() == [FORMER]
    return found


def test_it_is_kept_before_it_is_written_over_and_said_until_somebody_takes_it_away(
    file: BindingsFile,
) -> None:
    said = file.put_back.is_not_gone_by(["p"])
    assert said.code == "US647"
    assert "of p" in said.cause
    before = file.path.read_bytes()
    file.read()
    assert file.put_back.trouble is said, "it is not kept yet"
    file.write([NOW])
    assert (file.put_back.path.read_bytes(), read(file.path.parent)) == (before, [NOW])
    for process in (file, BindingsFile(file.path.parent)):
        process.read()
        assert process.put_back.trouble is not None
    file.put_back.path.rename(file.path)
    file.read()
    assert file.put_back.trouble is None


def test_where_it_cannot_be_kept_it_is_not_written_over(
    file: BindingsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.put_back.is_not_gone_by(["p"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shared.host.durable.create_file", full)
        for _ in range(2):
            with pytest.raises(StateFileError, match="noted") as caught:
                file.write([NOW])
        assert "could not be kept" in caught.value.cause
    assert read(file.path.parent) == [FORMER]
    file.write([NOW])
    assert file.put_back.path.exists()


def test_where_somebody_took_it_away_again_it_is_written_anew(file: BindingsFile) -> None:
    file.put_back.is_not_gone_by(["p"])
    file.path.unlink()
    file.write([NOW])
    assert (read(file.path.parent), file.put_back.path.exists()) == ([NOW], False)
    file.read()
    assert file.put_back.trouble is None


def test_another_one_that_is_kept_there_stays_and_the_same_one_is_enough(file: BindingsFile) -> None:
    kept = file.put_back.path
    kept.write_bytes(b"another")
    file.put_back.is_not_gone_by(["p"])
    with pytest.raises(StateFileError):
        file.write([NOW])
    assert (kept.read_bytes(), read(file.path.parent)) == (b"another", [FORMER])
    kept.write_bytes(file.path.read_bytes())
    file.write([NOW])
    assert read(file.path.parent) == [NOW]


def test_nothing_is_said_where_nothing_is_kept(tmp_path: Path) -> None:
    beside = PutBackFile(tmp_path / "disks.json")
    beside.look()
    beside.keep_if_due()
    assert (beside.trouble, beside.path.exists()) == (None, False)
