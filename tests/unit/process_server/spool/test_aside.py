"""What is set aside, looked at while others look, and while an operator tidies."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from process_server.spool import aside as aside_module
from process_server.spool.aside import Aside, Kind, Note


def filled(folder: Path, count: int) -> Aside:
    aside = Aside("m1", folder)
    (folder / "1").mkdir()
    for first in range(count):
        path = folder / "1" / f"{first:012d}.seg"
        path.write_bytes(b"x" * 10)
        aside.put(Kind.DAMAGED, path, Note(epoch=1, first=first, last=first, cause="test"), keep=False)
    return aside


def test_looks_at_once_count_every_file_once(tmp_path: Path) -> None:
    aside = filled(tmp_path, 60)
    with ThreadPoolExecutor(4) as pool:
        for look in [pool.submit(aside.look) for _ in range(40)]:
            look.result()
            assert aside.size_b == 600


def test_a_file_that_is_deleted_meanwhile_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = filled(tmp_path, 3)
    real = Path.stat

    def vanishing(self: Path, *, follow_symlinks: bool = True) -> object:
        if self.name == "00000001-000000000001.seg":
            self.unlink(missing_ok=True)
        return real(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", vanishing)
    aside.look()
    assert aside.size_b == 20


def unlisted(folder: Path) -> Aside:
    aside = Aside("m1", folder)
    (folder / "1").mkdir(exist_ok=True)
    path = folder / "1" / "000000000001.seg"
    path.write_bytes(b"x" * 10)
    aside.put(Kind.UNLISTED, path, Note(epoch=1, first=1, last=3, cause="test"))
    return aside


def test_a_wall_clock_that_is_years_ahead_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = unlisted(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    aside.look()
    Aside("m1", tmp_path).look()
    assert len(list((tmp_path / "unlisted").glob("*.seg"))) == 1


def test_what_was_kept_long_enough_goes_however_often_the_server_was_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = unlisted(tmp_path)
    hour = 3601.0
    hours = 0
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + hours * hour)
    while not aside.is_empty:
        hours += 1
        assert hours < 2 * aside_module.KEEP_S / hour
        aside.look()
        if hours % 50 == 0:
            aside = Aside("m1", tmp_path)
            aside.look()
    assert hours * hour >= aside_module.KEEP_S
    assert list((tmp_path / "unlisted").iterdir()) == []
