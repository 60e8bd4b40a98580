"""Log lines that cannot be written: counted, told once, and never more than that."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.daemon.log_sink import LIMIT, Sink


def test_a_full_disk_is_counted_and_named() -> None:
    with Path("/dev/full").open("w") as stream:
        sink = Sink(stream)
        for _ in range(3):
            sink.write("a line\n")
        assert sink.trouble == "3 log lines lost (No space left on device)"


def test_a_reader_that_has_gone_is_counted_and_named() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        sink = Sink(stream)
        sink.write("a line\n")
        assert sink.trouble == "1 log lines lost (Broken pipe)"


def test_a_reader_that_does_not_read_holds_nobody_up_and_misses_what_it_did_not_read() -> None:
    reading, writing = os.pipe()
    told: list[tuple[int, str]] = []
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb") as reader:
        sink = Sink(stream, lambda lost, cause: told.append((lost, cause)))
        written = 0
        while not sink.trouble:  # a blocking write would never return from here
            sink.write("x" * 10_000 + "\n")
            written += 1
        sink.write("lost, too\n")
        os.set_blocking(reading, False)
        content = b"".join(iter(lambda: reader.read(1 << 20), None))
        assert told == []
        sink.write("after\n")
        assert told == [(2, "nobody reads them")]
        assert sink.trouble == ""
        # A line of which a part was written ends there; the next one begins on a line of its own.
        whole = (content + reader.read()).decode().splitlines()
        assert whole[-1] == "after"
        assert whole[: written - 1] == ["x" * 10_000] * (written - 1)


def test_what_was_lost_is_told_as_soon_as_it_can_be_and_not_only_with_the_next_line() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb") as reader:
        told: list[str] = []

        def tell(lost: int, cause: str) -> None:
            told.append(f"{lost} lost: {cause}")
            sink.write(f"{lost} lost: {cause}\n")

        sink = Sink(stream, tell)
        while not sink.trouble:
            sink.write("x" * 10_000 + "\n")
        sink.try_again()
        assert sink.cause == "nobody reads them"
        os.set_blocking(reading, False)
        while reader.read(1 << 20):
            pass
        sink.try_again()
        assert sink.cause == sink.trouble == ""
        assert b"1 lost: nobody reads them" in reader.read()
        assert len(told) == 1


def test_lines_stay_lost_while_the_line_that_would_tell_it_is_lost_as_well() -> None:
    with Path("/dev/full").open("w") as stream:

        def tell(lost: int, cause: str) -> None:
            sink.write(f"{lost} lost: {cause}\n")

        sink = Sink(stream, tell)
        sink.write("a line\n")
        sink.try_again()
        assert sink.trouble == "1 log lines lost (No space left on device)"


def test_lines_stay_lost_while_nothing_could_tell_whether_it_is_over() -> None:
    with Path("/dev/full").open("w") as stream:
        sink = Sink(stream, lambda _lost, _cause: None)
        sink.write("a line\n")
        sink.try_again()
        assert sink.trouble == "1 log lines lost (No space left on device)"


def test_without_any_stderr_lines_are_counted() -> None:
    sink = Sink(None)
    sink.write("a line\n")
    assert sink.trouble == "1 log lines lost (there is no stderr)"
    assert not sink.isatty()


def test_a_stream_that_was_closed_is_counted() -> None:
    with Path("/dev/null").open("w") as stream:
        pass
    sink = Sink(stream)
    sink.write("a line\n")
    assert "closed file" in sink.trouble


def test_a_text_that_is_no_unicode_is_written_all_the_same(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        Sink(stream).write("bad \udcff name\n")
    assert (tmp_path / "log").read_text() == "bad \\udcff name\n"


def test_a_log_that_cannot_be_opened_anew_stays_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is free, say, or the disk has no room for a file."""
    monkeypatch.setenv(LIMIT, "100")
    log, opens = tmp_path / "ps.log", os.open

    def fails(*_arguments: object, **_more: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with log.open("a") as stream:
        sink = Sink(stream)
        monkeypatch.setattr(os, "open", fails)
        for number in range(20):
            sink.write(f"line {number:02d} of ten\n")
        assert [path.name for path in tmp_path.iterdir()] == ["ps.log"]
        monkeypatch.setattr(os, "open", opens)
        sink.write("the last\n")
    assert log.read_text() == "the last\n"
    assert len((tmp_path / "ps.log.1").read_text().splitlines()) == 20


def test_a_log_file_that_has_a_limit_is_rotated_and_no_line_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "100")
    log, older = tmp_path / "log", tmp_path / "log.1"
    with log.open("a") as stream:
        sink = Sink(stream)
        for number in range(15):
            sink.write(f"line {number:04}\n")
        assert sink.trouble == ""
    assert (older.read_text() + log.read_text()).split("\n")[:-1] == [
        f"line {number:04}" for number in range(15)
    ]
    assert len(older.read_text()) == 100


def test_no_file_gets_the_number_of_a_descriptor_that_was_closed_at_the_start(tmp_path: Path) -> None:
    code = (
        "from shared.daemon.log_sink import fill_standard_descriptors\n"
        "fill_standard_descriptors()\n"
        f"import os; print(os.open({str(tmp_path)!r}, os.O_RDONLY), file=open({str(tmp_path / 'said')!r}, 'w'))"
    )
    done = subprocess.run(["/bin/sh", "-c", f'exec {sys.executable} -c "$0" <&- >&- 2>&-', code], check=False)
    assert done.returncode == 0
    assert int((tmp_path / "said").read_text()) > 2


COMMANDS = {
    "understudy": "config_server.cli.main machine unprotect web1",
    "init": "config_server.cli.main init --dry-run --no-unit --etc {0}/etc --state {0}/state",
    "agent setup": "agent setup --dry-run --no-unit --etc {0}/etc --state {0}/state",
    "preflight": "agent preflight {0}/none",
    "enrol": "shared.control.enrol --server https://127.0.0.1:9 --token-file {0}/none --dir {0}/tls",
}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_ends_as_ever_whichever_of_its_streams_are_closed(
    tmp_path: Path, command: str, closed: str
) -> None:
    words = COMMANDS[command].format(tmp_path)
    ended = [
        subprocess.run(
            ["/bin/sh", "-c", f"exec {sys.executable} -m {words} {how}"],
            capture_output=True,
            text=True,
            check=False,
        )
        for how in ("</dev/null", closed if "<" in closed else f"</dev/null {closed}")
    ]
    assert ended[0].returncode not in (0, 1), ended[0].stderr
    assert ended[1].returncode == ended[0].returncode, ended[1].stderr
    assert "Traceback" not in ended[1].stdout + ended[1].stderr


class _Heard(io.StringIO):
    """A stream that does something else when it is written to for the first time."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._meanwhile: Callable[[], object] | None = meanwhile

    def fileno(self) -> int:
        raise io.UnsupportedOperation

    def write(self, text: str) -> int:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().write(text)


def test_a_line_within_a_line_is_written_behind_it() -> None:
    out = _Heard(lambda: sink.write("of the collector\n"))
    sink = Sink(out)
    writing = threading.Thread(target=lambda: sink.write("first\n"), daemon=True)
    writing.start()
    writing.join(10)
    assert not writing.is_alive(), "it waits for itself"
    assert out.getvalue() == "first\nof the collector\n"


def test_no_line_waits_for_another_thread_that_writes_one() -> None:
    within, go_on = threading.Event(), threading.Event()

    def blocks() -> None:
        within.set()
        go_on.wait(10)

    out = _Heard(blocks)
    sink = Sink(out)
    writing = threading.Thread(target=lambda: sink.write("slow\n"), daemon=True)
    writing.start()
    assert within.wait(10)
    sink.write("quick\n")
    assert out.getvalue() == ""
    go_on.set()
    writing.join(10)
    assert out.getvalue() == "slow\nquick\n"
