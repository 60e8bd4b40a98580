"""What is set aside: kept, told, and gone only when it may."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from process_server.spool import aside
from process_server.spool.aside import Aside, Kind, Note
from shared.errors import SetAsideError, SpoolLostError


def put(folder: Path, found: Aside, kind: Kind, *, keep: bool = False, content: bytes = b"x" * 2048) -> Path:
    path = folder / "000000000006.seg"
    path.write_bytes(content)
    found.put(kind, path, Note(epoch=1, first=6, last=10, cause="the index lists others"), keep=keep)
    return path


def test_a_file_is_moved_and_told_with_its_size_and_batches_also_after_a_restart(tmp_path: Path) -> None:
    found = Aside("m1", tmp_path / "m1")
    path = put(tmp_path, found, Kind.UNLISTED)
    assert not path.exists()
    again = Aside("m1", tmp_path / "m1")
    again.look()
    for known in (found, again):
        (problem,) = known.problems()
        assert isinstance(problem, SetAsideError)
        assert "2.0 KiB in 1 files" in problem.what
        assert problem.cause == "batches 6 to 10 of epoch 1: the index lists others"
        assert (known.size_b, known.epochs(), known.is_empty) == (2048, {1}, False)


def test_a_file_that_is_still_needed_has_both_names_and_is_put_aside_once(tmp_path: Path) -> None:
    found = Aside("m1", tmp_path / "m1")
    path = put(tmp_path, found, Kind.DAMAGED, keep=True)
    found.put(Kind.DAMAGED, path, Note(epoch=1, first=6, last=10, cause=""), keep=True)
    assert path.exists()
    assert found.size_b == 2048
    assert [type(p) for p in found.problems()] == [SpoolLostError]


def test_a_kill_between_the_two_names_is_made_good_by_the_next_run(tmp_path: Path) -> None:
    found = Aside("m1", tmp_path / "m1")
    path = put(tmp_path, found, Kind.UNLISTED, keep=True)  # so far the killed run came
    found.put(Kind.UNLISTED, path, Note(epoch=1, first=6, last=10, cause=""))
    assert not path.exists()
    assert found.size_b == 2048


def test_two_files_of_one_name_are_both_kept(tmp_path: Path) -> None:
    found = Aside("m1", tmp_path / "m1")
    put(tmp_path, found, Kind.UNLISTED)
    put(tmp_path, found, Kind.UNLISTED, content=b"other")
    contents = {p.read_bytes() for p in (tmp_path / "m1/unlisted").iterdir() if p.suffix != ".note"}
    assert contents == {b"x" * 2048, b"other"}


def test_a_lost_note_hides_nothing(tmp_path: Path) -> None:
    found = Aside("m1", tmp_path / "m1")
    put(tmp_path, found, Kind.DAMAGED)
    (tmp_path / "m1/damaged/00000001-000000000006.seg.note").write_bytes(b"\xff")
    found.look()
    assert "batches 6 to ? of epoch 1" in found.problems()[0].cause


def test_unlisted_files_go_after_their_time_and_damaged_ones_only_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Aside("m1", tmp_path / "m1")
    put(tmp_path, found, Kind.UNLISTED)
    put(tmp_path, found, Kind.DAMAGED)
    later = time.time() + aside.KEEP_S - 60
    monkeypatch.setattr("process_server.spool.aside.time.time", lambda: later)
    found.look()
    assert len(found.problems()) == 2
    later += 120
    found.look()
    assert [type(p) for p in found.problems()] == [SpoolLostError]
    assert list((tmp_path / "m1/unlisted").iterdir()) == []
    for path in (tmp_path / "m1/damaged").iterdir():
        path.unlink()
    found.look()
    assert found.is_empty
