"""Trouble is told once, again when its cause changes, and when it is over."""

from __future__ import annotations

import pytest
import structlog

from shared.daemon import trouble
from shared.daemon.trouble import Trouble
from shared.errors import StorageRefusedError, TransientError


def test_each_change_is_a_line_and_repetition_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = structlog.testing.LogCapture()
    monkeypatch.setattr(trouble, "_log", structlog.wrap_logger(None, processors=[capture]))
    said: list[str] = []
    seen = Trouble("uploads", lambda: said.append(seen.error.cause if seen.error else "none"), machine="m1")
    seen.report(None)
    seen.report(TransientError("Could not write blob 1", cause="no answer"))
    seen.report(TransientError("Could not write blob 2", cause="no answer"))
    seen.report(StorageRefusedError("Could not write blob 2", cause="HTTP 403"))
    seen.report(None)
    seen.report(None)
    assert said == ["none", "no answer", "no answer", "HTTP 403", "none", "none"]
    lines = [(line["log_level"], line["event"], line.get("cause")) for line in capture.entries]
    assert lines == [
        ("warning", "uploads: trouble", "no answer"),
        ("warning", "uploads: trouble", "HTTP 403"),
        ("info", "uploads: trouble is over", None),
    ]
    assert {line["machine"] for line in capture.entries} == {"m1"}
