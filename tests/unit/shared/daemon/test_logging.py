"""Log lines: form, secrets, foreign libraries."""

from __future__ import annotations

import io
import json
import logging as standard
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared.daemon import logging
from shared.errors import ConfigError


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    before = structlog.get_config()
    root = standard.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_has_time_level_service_event_and_what_is_bound(out: io.StringIO) -> None:
    log = logging.get(machine="lab")
    logging.configure("agent", stream=out)
    log.info("batch sent", number=3)
    [line] = lines(out)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "service": "agent",
        "event": "batch sent",
        "machine": "lab",
        "number": 3,
    }


def test_an_error_is_its_four_parts(out: io.StringIO) -> None:
    logging.configure("agent", stream=out)
    logging.get().error("failed", **ConfigError("X", cause="Y").as_dict())
    [line] = lines(out)
    assert (line["code"], line["what"], line["cause"]) == ("US101", "X", "Y")
    assert line["action"]


def test_lines_below_the_level_are_dropped(out: io.StringIO) -> None:
    logging.configure("agent", level=logging.Level.WARNING, stream=out)
    logging.get().info("no")
    logging.get().warning("yes")
    assert [line["event"] for line in lines(out)] == ["yes"]


def test_secrets_are_blanked(out: io.StringIO) -> None:
    logging.configure("agent", stream=out)
    logging.get().info("enrolled", token="hunter2", name="a")
    assert "hunter2" not in out.getvalue()
    assert lines(out)[0]["token"] == "[blanked]"


def test_other_libraries_log_through_the_same_pipeline_once(out: io.StringIO) -> None:
    logging.configure("agent", stream=out)
    logging.configure("agent", stream=out)
    standard.getLogger("asyncio").warning("slow %s", "callback")
    standard.getLogger("asyncio").info("not shown")
    [line] = lines(out)
    assert (line["event"], line["service"], line["logger"]) == ("slow callback", "agent", "asyncio")


def test_a_terminal_gets_text(out: io.StringIO) -> None:
    logging.configure("agent", json=False, stream=out)
    logging.get().info("hello there", number=1)
    assert "hello there" in out.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(out.getvalue())


def test_when_the_log_works_again_a_line_says_what_was_lost(out: io.StringIO) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading) as reader:
        kept = os.dup(reading)
        with Path("/dev/full").open("w") as full:
            os.dup2(writing, kept)  # a descriptor to come back to
            os.dup2(full.fileno(), writing)
            logging.configure("agent", stream=stream)
            logging.get().info("one")
            standard.getLogger("asyncio").warning("two")
            assert logging.trouble() == "2 log lines lost (No space left on device)"
            os.dup2(kept, writing)
            os.close(kept)
        logging.get().info("three")
        assert logging.trouble() == ""
        line, told = json.loads(reader.readline()), json.loads(reader.readline())
    assert line["event"] == "three"
    assert (told["event"], told["lost_lines"]) == ("the log can be written again", 2)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("foreign", [True, False])
def test_a_traceback_tells_where_and_never_what_the_variables_held(
    out: io.StringIO, *, as_json: bool, foreign: bool
) -> None:
    def grant(account_key: str) -> None:
        raise TypeError(f"a key of {len(account_key)} letters")

    logging.configure("agent", json=as_json, stream=out)
    try:
        grant("Eby8" * 3)
    except TypeError as exc:
        if foreign:
            standard.getLogger("somebody.else").error("failed", exc_info=exc)
        else:
            logging.get().error("failed", exc_info=exc)
    said = out.getvalue()
    assert "in grant" in said
    assert "TypeError: a key of 12 letters" in said
    assert "Eby8Eby8" not in said


def test_what_a_test_logs_itself_does_not_draw_what_the_variables_held(
    capsys: pytest.CaptureFixture[str],
) -> None:
    secret = "Eby8" * 3
    try:
        raise TypeError(f"{len(secret)} letters")
    except TypeError as exc:
        logging.get().error("failed", exc_info=exc)
    said = capsys.readouterr().out
    assert "TypeError: 12 letters" in said
    assert "Eby8Eby8" not in said
