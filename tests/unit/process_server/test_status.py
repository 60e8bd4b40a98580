"""What a process server says of itself, and how bad it is."""

from __future__ import annotations

from pathlib import Path

from process_server.spool.aside import Aside, Kind, Note
from process_server.status import distinct
from shared.vocabulary import Severity


def test_batches_that_the_log_went_on_without_are_a_warning_and_damaged_ones_an_error(tmp_path: Path) -> None:
    """A server that stood still while its machine moved keeps them for 14 days, and the machine is well."""
    aside = Aside("web1", tmp_path)
    for kind in Kind:
        spooled = tmp_path / f"{kind}.seg"
        spooled.write_bytes(b"batches")
        aside.put(
            kind, spooled, Note(epoch=1, first=55, last=89, cause="the index lists other batches up to 104")
        )
    found = {
        problem.code: (problem.severity, problem.object) for problem in distinct(aside.problems(), "web1")
    }
    assert found == {"US402": (Severity.WARNING, "web1"), "US483": (Severity.ERROR, "web1")}
