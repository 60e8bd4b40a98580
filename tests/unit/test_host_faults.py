"""The host that fails does fail: each kind of failure strikes what Python and SQLite do to a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host_faults import Fail, Host

REPLACE = "from shared.host import durable; from pathlib import Path; durable.replace_file(Path({0!r}), b'x')"
READ = "from pathlib import Path; Path({0!r}).read_bytes()"
SQLITE = """
import sqlite3
db = sqlite3.connect({0!r})
db.execute("CREATE TABLE t (x)")
db.commit()
"""


def run(host: Host, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **host.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("how", [how for how in Fail if how not in (Fail.GONE, Fail.PIPE)])
def test_a_file_that_fails_is_struck_and_its_neighbour_is_not(how: Fail, tmp_path: Path) -> None:
    host = Host(tmp_path)
    code = READ if how is Fail.READS else REPLACE
    (tmp_path / "well").write_bytes(b"")
    (tmp_path / "ill").write_bytes(b"")
    with host.failing(str(tmp_path / "*ill*"), how) as struck:
        assert run(host, code.format(str(tmp_path / "well"))) == ""
        assert struck.count == 0
        assert how.words in run(host, code.format(str(tmp_path / "ill")))
        assert struck.count > 0
    assert run(host, code.format(str(tmp_path / "ill"))) == ""


@pytest.mark.parametrize("how", [Fail.FULL, Fail.WRITES, Fail.SYNCS])
def test_a_database_that_fails_is_struck(how: Fail, tmp_path: Path) -> None:
    host = Host(tmp_path)
    (tmp_path / "db").touch()
    with host.failing(str(tmp_path / "db*"), how) as struck:
        assert "sqlite3.OperationalError" in run(host, SQLITE.format(str(tmp_path / "db")))
        assert struck.count > 0


def test_the_wall_clock_is_shifted_or_stands_and_the_others_go_on(tmp_path: Path) -> None:
    host = Host(tmp_path)
    code = "import time; a = time.time(); m = time.monotonic(); time.sleep(0.01); print(a, time.time() - a, time.monotonic() > m)"
    real = float(run(host, code).split()[0])
    host.shift_clock(3e8)
    shown, _, goes_on = run(host, code).split()
    assert 0 <= float(shown) - real - 3e8 < 60
    assert goes_on == "True"
    host.stop_clock()
    _, passed, goes_on = run(host, code).split()
    assert (float(passed), goes_on) == (0.0, "True")
    host.mend_clock()
    assert float(run(host, code).split()[0]) - real < 60
