"""A real PostgreSQL for tests: Debian's programs, with a cluster of this test run's own, on a socket alone. No cluster of the host is
touched.

`postgres` is one server for the whole session of tests; `database_config` is a database of its own in it for each test, with the schema.
Nothing is written durably: what a crash of PostgreSQL itself leaves is not what these tests are about.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from config_server.store.config import DatabaseConfig

if TYPE_CHECKING:  # most tests need no database, and these take their time to load
    import psycopg

_PROGRAMS: Final = Path("/usr/lib/postgresql/15/bin")
_USER: Final = "postgres"
"""As whom it runs: never as root. Debian's package makes it."""
_TEMPLATE: Final = "understudy"
GUARDED: Final = "guarded"
"""A user who needs a password, once somebody has made him."""
SETTINGS: Final = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "autovacuum": "off",
    "log_min_messages": "warning",
}


class Postgres:
    """One server process. `start` it again after `stop` or a kill: what it had is there."""

    owner: Final = _TEMPLATE
    """Who may everything in it."""
    programs: Final = _PROGRAMS

    def __init__(self) -> None:
        if not (_PROGRAMS / "postgres").exists():
            raise RuntimeError("PostgreSQL is not installed: run `make setup`")
        self.folder = Path(tempfile.mkdtemp(prefix="understudy-postgres-"))  # a socket's path must be short
        self._process: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        self._said = collections.deque[str](maxlen=50)
        self._numbers = itertools.count(1)
        user = pwd.getpwnam(_USER)
        os.chown(self.folder, user.pw_uid, user.pw_gid)
        make = ["initdb", "--pgdata", str(self.folder / "data"), "--username", _TEMPLATE, "--auth", "trust"]
        done = subprocess.run(
            [*_as_user(), _PROGRAMS / make[0], *make[1:], "--no-sync", "--encoding", "UTF8", "--locale", "C.UTF-8"],
            capture_output=True, text=True, cwd=self.folder, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"initdb: {done.stderr}")
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text(f"local all {GUARDED} scram-sha-256\n{rules.read_text()}")

    def start(self) -> None:
        """Returns when it takes connections."""
        settings = [f"-c{name}={value}" for name, value in SETTINGS.items()]
        self._process = subprocess.Popen(
            [*_as_user(), _PROGRAMS / "postgres", "-D", self.folder / "data", "-k", self.folder, *settings],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=self.folder, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line)
            if "ready to accept connections" in line:
                break
        else:
            raise RuntimeError(f"PostgreSQL did not start: {''.join(self._said)}")
        self._listener = threading.Thread(target=self._said.extend, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    def stop(self) -> None:
        """At once, with all its connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
            assert self._listener is not None and self._process.stderr is not None
            self._listener.join()
            self._process.stderr.close()
            self._process = None

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """With all its connections: as on a disk that hangs."""
        assert self._process is not None
        ours = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        pids = [self._process.pid, *map(int, ours)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def url(self, name: str) -> str:
        return f"postgresql://{_TEMPLATE}@/{name}?host={self.folder}"

    def config(self, name: str) -> DatabaseConfig:
        return DatabaseConfig(url=self.url(name))

    def admin(self) -> psycopg.Connection[tuple[object, ...]]:
        """Past the config server."""
        import psycopg

        return psycopg.connect(self.url("postgres"), autocommit=True)

    def make_template(self) -> None:
        with self.admin() as db:
            db.execute(f"CREATE DATABASE {_TEMPLATE}")
        from config_server.store.postgresql import Postgresql

        Postgresql(self.config(_TEMPLATE)).open().close()

    def made(self, *, empty: bool = False) -> str:
        """The name of a new database, with the schema unless it is `empty`."""
        name = f"test_{next(self._numbers)}"
        template = "template0" if empty else _TEMPLATE
        with self.admin() as db:
            db.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        with self.admin() as db:
            db.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _as_user() -> list[str]:
    """It ends with this process, too."""
    return ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups", "--pdeathsig=INT"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    try:
        server.start()
        server.make_template()
        yield server
    finally:
        server.remove()


@pytest.fixture
def database_config(postgres: Postgres) -> Iterator[DatabaseConfig]:
    name = postgres.made()
    yield postgres.config(name)
    postgres.drop(name)
