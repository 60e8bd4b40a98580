"""A disk hangs when requests are in flight and none completes; over a made-up sysfs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.continuity.hanging import HANGS_S, Hanging
from tests.disk_parts import make_disk


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Looks once, some seconds later than before; returns the disks that hang."""
    disks = [
        make_disk(tmp_path, name, {"inflight": "0 0", "stat": " ".join(["0"] * 17)})
        for name in ("sda", "sdb")
    ]
    capture: Any = SimpleNamespace(disks=disks)
    hanging = Hanging(capture)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def look_at(later_s: float, *, inflight: str, reads: int, gone: tuple[int, ...] = ()) -> list[str]:
        nonlocal now
        now += later_s
        (tmp_path / "block/sda/inflight").write_text(f"{inflight}\n")
        (tmp_path / "block/sda/stat").write_text(" ".join([str(reads), *["0"] * 16]))
        hanging.look(gone, sysfs=tmp_path)
        return [problem.object for problem in hanging.problems.values()]

    return look_at


def test_a_disk_on_which_nothing_completes_hangs_until_something_does(look: Callable[..., list[str]]) -> None:
    assert look(0, inflight="1 0", reads=5) == []
    assert look(HANGS_S / 2, inflight="1 3", reads=5) == []
    assert look(HANGS_S / 2, inflight="0 3", reads=5) == ["sda"]
    assert look(HANGS_S, inflight="0 3", reads=5) == ["sda"]
    assert look(1, inflight="0 3", reads=6) == []
    assert look(HANGS_S, inflight="0 3", reads=6) == ["sda"]
    assert look(1, inflight="0 3", reads=6, gone=(0,)) == []


def test_a_disk_that_is_slow_or_idle_does_not_hang(look: Callable[..., list[str]]) -> None:
    for reads in range(3):
        assert look(HANGS_S - 1, inflight="1 0", reads=reads) == []
    assert look(HANGS_S - 1, inflight="0 0", reads=3) == []
    assert look(HANGS_S, inflight="0 0", reads=3) == []
    assert look(1, inflight="1 0", reads=3) == []
