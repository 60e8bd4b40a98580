"""Every file of every daemon, and what is seen of it when it fails: (daemon, file, how) → the problem that people are shown.

A *running* case fails under a daemon that works: the problem appears by its code, the daemon lives, and when the file is well the problem
goes by itself. A *start* case fails while a daemon starts: it ends with words that name the file (or works, where `ends` is empty), and
starts again when the file is well. tests/long/environment.py runs all of them over one lab under load, and then checks that nothing that
was acknowledged is lost; tests/integration/environment/test_failing_files.py runs some.

Files that a daemon treats alike, and errors that it does, are not multiplied: each file fails in some ways, and each way strikes some file.

What is not here, and why:
- agent, disks.json: written only when a disk is seen for the first time, in this boot or elsewhere
  (tests/integration/agent/test_protection.py).
- agent, desired.json: written only when the config server wants something else (tests/integration/agent/test_wishes.py).
- agent, stream state and bitmaps: pinned kernel memory, no file. Of the BPF file system nothing fails but the making (start).
- process server, aside files and their notes: written when spool files are damaged (process_server/spool/test_recovery.py).
- master target with page blobs: has no file of its own but certificate, key cache and log; its state is in storage (storage-faults).
- process server, its spool at a start: what lies in it is read when it is ready, and then it is a running case.
- config server, operator.token and CA: written once, at the first start (tests/integration/environment/test_database.py).
- the service manager's socket: nothing depends on it (tests/unit/shared/daemon/test_service.py).
- pid files: there are none. The agent's lock needs no writing once it is there, so a full or read-only disk does not strike it
  (tests/integration/environment/test_agent_lock.py); that it cannot be read is a start case.
- the command line's output: tests/integration/config_server/test_cli.py; the folder of a restore is in the long part.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from config_server.identity.ca import CertificateAuthority, hosts_of
from deploy.lab.state import Lab as LabState
from shared.control import enrol
from shared.trust import identity
from shared.vocabulary import Role
from tests.host_faults import Call, Fail
from tests.hosted_lab import DAEMONS, HostedLab

SHOWN_S: Final = 90.0
"""Certificates are looked at once a minute, and so is a key cache that could not be written; spool state twice."""
_spare = itertools.count(1)

Begin = Callable[[HostedLab, str], Any]


def nothing(_lab: HostedLab, _daemon: str) -> None:
    """The daemon touches the file by itself."""


def restart(lab: HostedLab, daemon: str) -> None:
    if (code := lab.restart(daemon)) is not None:
        raise AssertionError(f"{daemon} ended with {code}: {lab.said(daemon)[-2:]}")


def restart_without(file: str) -> Begin:
    """It is made anew, and was never stored before."""

    def begin(lab: HostedLab, daemon: str) -> None:
        lab.stop(daemon)
        for path in lab.site.folder.glob(file):
            path.unlink()
        restart(lab, daemon)

    return begin


def restart_with_a_due_certificate(lab: HostedLab, daemon: str) -> None:
    """Another one of the same key, of which the config server knows nothing: none that it issued lately is due."""
    ca = CertificateAuthority.open(lab.site.folder / "config-server")
    files = identity.files_in(lab.site.folder / "tls" / daemon)
    old = identity.only_certificate(files.cert.read_text())
    role, _, name = identity.name_of(old).partition(":")
    key, hosts, now = identity.key_of(files).public_key(), hosts_of(old), dt.datetime.now(dt.UTC)
    begins = now - dt.timedelta(days=25)
    due = ca.issue(key, Role(role), name, hosts, dt.timedelta(days=5), now, begins=begins)
    identity.write(files.cert, identity.pem_of(due), mode=0o644)
    restart(lab, daemon)


def revoke_somebody(lab: HostedLab, _daemon: str) -> None:
    name = f"spare{next(_spare)}"
    state = LabState.open(lab.site.folder)
    token = lab.site.read("token", "create", "agent", name)["token"]
    folder = lab.site.folder / "tls" / name
    asyncio.run(enrol.enrol(state.config_server_url, token, folder))
    lab.site.run("certificate", "revoke", f"agent:{name}", "--reason", "test", "--yes")


@dataclass(frozen=True)
class Running:
    daemon: str
    file: str
    where: str
    how: Fail
    code: str
    begin: Begin = nothing
    calls: Call | None = None

    @property
    def name(self) -> str:
        return f"{self.daemon}: {self.file}: {self.how.name.lower().replace('_', ' ')}"


@dataclass(frozen=True)
class Start:
    daemon: str
    file: str
    where: str
    how: Fail
    ends: str
    """The code that it ends with; empty: it works."""

    @property
    def name(self) -> str:
        return f"{self.daemon} starts: {self.file}: {self.how.name.lower().replace('_', ' ')}"


Case = Running | Start

_WRITTEN: Final = (Fail.FULL, Fail.READ_ONLY, Fail.WRITES, Fail.SYNCS)


def _running() -> Iterator[Case]:
    ps, mt, cs, agent = "process-server", "master-target", "config-server", "agent"
    for how in (*_WRITTEN, Fail.FULL_AT_SYNC):
        code = "US480" if how is Fail.FULL else "US439"
        yield Running(ps, "spool files", "*/spool/lab/0*/0*.seg", how, code)
    yield Running(ps, "spool files that are read", "*/spool/lab/0*/0*.seg", Fail.READS, "US439")
    yield Running(
        ps, "spool files that are deleted", "*/spool/lab/0*/0*.seg", Fail.READ_ONLY, "US542", calls=Call.NAME
    )
    yield Running(ps, "the cache, measured", "*/spool", Fail.ALL, "US486", calls=Call.ASK)
    for how in _WRITTEN:
        yield Running(cs, "database", "*/config-server/state.db*", how, "US545")
        yield Running(mt, "images and their state", "*/images/*", how, "US490")
    for how in (Fail.FULL, Fail.SYNCS):
        yield Running(ps, "spool state", "*/spool/lab/0*/*state.json*", how, "US541")
    boot = "spool/lab/boot.json"
    for how in (Fail.FULL, Fail.WRITES):
        yield Running(ps, "side.json", "*/spool/lab/*side.json*", how, "US544", restart)
        yield Running(ps, "boot.json", "*/spool/lab/*boot.json*", how, "US549", restart_without(boot))
    for how in (Fail.FULL, Fail.READ_ONLY):
        yield Running(ps, "revoked.json", "*revoked.json*", how, "US543", revoke_somebody)
        yield Running(agent, "note for the host", "/run/understudy/protected/*", how, "US546", restart)
    yield Running(agent, "revoked.json", "*revoked.json*", Fail.SYNCS, "US543", revoke_somebody)
    # What is only not read is had from the config server at once, and written: nobody needs to be told.
    for daemon, how, folder in ((ps, Fail.ALL, "spool"), (mt, Fail.FULL, "master-target")):
        begin = restart if how is Fail.ALL else restart_without(f"{folder}/.keys/*")
        yield Running(daemon, "key cache", "*/.keys/*", how, "US511", begin)
    for daemon, how in ((ps, Fail.FULL), (mt, Fail.READ_ONLY), (agent, Fail.SYNCS)):
        where = f"*/tls/{daemon}/*cert.pem*"
        yield Running(daemon, "renewed certificate", where, how, "US475", restart_with_a_due_certificate)
    for daemon, how in zip(DAEMONS, (Fail.FULL, Fail.PIPE, Fail.WRITES, Fail.FULL), strict=True):
        yield Running(daemon, "log", f"*/log/{daemon}.log", how, "US540", restart)


def _starts() -> Iterator[Case]:
    for daemon, how in (
        ("process-server", Fail.READS),
        ("master-target", Fail.FORBIDDEN),
        ("agent", Fail.GONE),
    ):
        yield Start(daemon, "key", f"*/tls/{daemon}/key.pem", how, "US101")
    for how in (Fail.READS, Fail.FORBIDDEN, Fail.GONE):
        yield Start("config-server", "database", "*/config-server/state.db*", how, "US545")
    yield Start("config-server", "CA key", "*/config-server/ca.key", Fail.READS, "US101")
    yield Start("config-server", "vault", "*/vault.json", Fail.READS, "US100")
    yield Start("config-server", "vault", "*/vault.json", Fail.GONE, "US100")
    yield Start("config-server", "lock", "*/config-server.lock", Fail.READ_ONLY, "US478")
    yield Start("process-server", "lock", "*/spool/.lock", Fail.READ_ONLY, "US439")
    yield Start("process-server", "key cache", "*/.keys/*", Fail.FORBIDDEN, "")
    yield Start("agent", "lock", "*/agent.lock", Fail.READS, "US478")
    yield Start("agent", "disks.json", "*/agent/disks.json", Fail.FORBIDDEN, "US478")
    yield Start("agent", "desired.json", "*/agent/desired.json", Fail.FORBIDDEN, "")


CASES: Final[tuple[Case, ...]] = (*_running(), *_starts())


def check(case: Case, lab: HostedLab) -> dict[str, Any]:
    """What was measured; raises AssertionError when a case does not go as the table says."""
    return _check_running(case, lab) if isinstance(case, Running) else _check_start(case, lab)


def shown(lab: HostedLab) -> dict[str, str]:
    """Code → what is said, of all that people are shown of the machine and of the daemons."""
    found = {
        error["code"]: f"{error['what']}: {error['cause']}. {error['action']}"
        for error in lab.machine()["errors"]
    }
    for daemon in lab.site.ask("/v1/daemons")["daemons"]:
        for error in daemon["report"].get("errors", []):
            found.setdefault(error["code"], f"{error['what']}: {error['cause']}. {error['action']}")
    return found


def _check_running(case: Running, lab: HostedLab) -> dict[str, Any]:
    host = lab.hosts[case.daemon]
    began = time.monotonic()
    with host.failing(case.where, case.how, calls=case.calls) as struck:
        case.begin(lab, case.daemon)
        said = until(lambda: shown(lab).get(case.code), f"{case.name}: {case.code} is not shown", lab)
        shown_s = time.monotonic() - began
        expect(struck.count > 0, f"{case.name}: nothing was struck")
        expect(lab.runs(case.daemon), f"{case.name}: the daemon ended: {lab.said(case.daemon)[-3:]}")
        expect(not said.endswith(". "), f"{case.name}: no way out is said: {said}")
    began = time.monotonic()
    until(lambda: case.code not in shown(lab), f"{case.name}: {case.code} does not go", lab)
    expect(lab.runs(case.daemon), f"{case.name}: the daemon ended when all was well")
    lab.site.wait_ordered(60)
    return {
        "struck": struck.count,
        "shown_s": round(shown_s, 1),
        "gone_s": round(time.monotonic() - began, 1),
        "said": said,
    }


def _check_start(case: Start, lab: HostedLab) -> dict[str, Any]:
    lab.stop(case.daemon)
    again: int | None = None
    try:
        with lab.hosts[case.daemon].failing(case.where, case.how) as struck:
            code = lab.start(case.daemon)
            errors = [
                line for line in lab.said(case.daemon) if line.get("level") == "error" and "code" in line
            ]
    finally:
        if not lab.runs(case.daemon):
            again = lab.start(case.daemon)
    expect(again is None, f"{case.name}: it does not start when all is well: {again}")
    expect(struck.count > 0, f"{case.name}: nothing was struck")
    if case.ends:
        expect(code not in (None, 0, 1), f"{case.name}: exit code {code}")
        expect(bool(errors) and errors[-1]["code"] == case.ends, f"{case.name}: it said {errors[-1:]}")
        expect(bool(errors[-1]["action"]), f"{case.name}: no way out is said: {errors[-1]}")
    else:
        expect(code is None, f"{case.name}: it ended with {code}: {errors[-1:]}")
    lab.site.wait_ordered(90)
    return {"struck": struck.count, "exit_code": code, "said": errors[-1]["what"] if errors else ""}


def until(look: Callable[[], Any], what: str, lab: HostedLab, timeout_s: float = SHOWN_S) -> Any:
    deadline = time.monotonic() + timeout_s
    found: Any = None
    while not found:
        # A config server that is being struck, or starts, may not answer for a moment.
        with contextlib.suppress(OSError, ValueError):
            found = look()
        if time.monotonic() > deadline:
            with contextlib.suppress(OSError, ValueError):
                what += f"; shown is {shown(lab)}"
            raise AssertionError(what)
        time.sleep(0.2)
    return found


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
