"""The agent's note for other programs of this host, on a disk that fails: the machine is protected all the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.host_note import HostNote
from shared.host import protected
from tests.failing_disks import FAILING


@pytest.mark.parametrize("kind", FAILING)
def test_a_note_that_cannot_be_written_is_a_problem_until_it_can(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Any = SimpleNamespace(machine="web1", pin_dir=Path("/sys/fs/bpf/understudy-test/none"))
    capture: Any = SimpleNamespace(disks=[SimpleNamespace(name="loop0", diskseq=7)])
    with FAILING[kind]() as disk:
        monkeypatch.setattr(protected, "_FOLDER", disk.where / "protected")
        (disk.where / "protected").mkdir()
        disk.fail()
        note = HostNote(config, capture)
        note.keep()
        assert note.problem is not None
        assert (note.problem.code, kind in note.problem.cause) == ("US546", True)
        said = note.problem.cause
        note.keep()
        assert note.problem.cause == said, "what is tried again is no other problem"
        if disk.heals:
            disk.heal()
            note.keep()
            assert note.problem is None
            assert len(list((disk.where / "protected").glob("*.json"))) == 1
