"""Two config servers that renew their CA are killed at each of its points, and started again: it goes on to its end, and nobody is locked
out. Files are copied as the job says."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from config_server.identity.ca import CertificateAuthority
from config_server.store.config import DatabaseConfig
from shared import api
from shared.api.jobs import JobState, JobView
from shared.api.route import Nothing
from shared.control.rest import RestClient
from shared.crashpoints import CA_POINTS
from shared.trust import tls
from tests import ca_renewals
from tests.ca_renewals import Daemon, hurry
from tests.marks import some
from tests.replicas import Balancer, Replica

_IN_DATABASE, _BETWEEN, _SWITCHED, _DROPPED = CA_POINTS
POINTS = [
    (_IN_DATABASE, _IN_DATABASE),
    (f"{_BETWEEN}:2", f"{_BETWEEN}:3"),  # made; the first's very first one was at its start
    (f"{_BETWEEN}:3", f"{_BETWEEN}:1"),  # switched
    (f"{_BETWEEN}:4", f"{_BETWEEN}:2"),  # dropped
    (_SWITCHED, _SWITCHED),
    (_DROPPED, _DROPPED),
]


@contextlib.asynccontextmanager
async def servers(
    folder: Path, database: DatabaseConfig, points: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[Replica]]:
    first, second = (Replica(folder / name, database.url, name) for name in ("cs-a", "cs-b"))
    async with contextlib.AsyncExitStack() as stack:
        for replica, point in zip((first, second), points, strict=True):
            with monkeypatch.context() as armed:
                armed.setenv("UNDERSTUDY_CRASH_AT", point)
                if replica is second:
                    second.join(first)
                stack.push_async_callback(replica.end)
                await replica.start()
        yield [first, second]


def give_as_said(waits: str, replicas: dict[str, Replica]) -> None:
    for to, source in re.findall(
        r"(cs-\w) \(copy ca\.key and ca\.pem from the data folder of (cs-\w)", waits
    ):
        for name in ("ca.key", "ca.pem"):
            shutil.copy2(replicas[source].data / name, replicas[to].data / name)


async def bring_up(replicas: dict[str, Replica], database: DatabaseConfig) -> int:
    """Those that were killed; how many."""
    dead = [replica for replica in replicas.values() if not replica.lives]
    for replica in dead:
        await replica.end()
        with psycopg.connect(database.url, autocommit=True) as db:
            db.execute("UPDATE jobs SET lease_ns = 0")  # what it had is over, sooner than in half a minute
        await replica.start()
    return len(dead)


@pytest.mark.parametrize(("of_first", "of_second"), some(POINTS, short=[POINTS[2]]))
async def test_killed_at_any_point_it_goes_on_and_nobody_is_locked_out(
    of_first: str,
    of_second: str,
    tmp_path: Path,
    database_config: DatabaseConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hurry(monkeypatch)  # the daemons
    killed, found = 0, None
    async with (
        servers(tmp_path, database_config, (of_first, of_second), monkeypatch) as there,
        Balancer(there).running() as balancer,
    ):
        replicas = {replica.name: replica for replica in there}
        enrolled = [("agent", "web1"), ("process-server", "ps1")]
        daemons = [
            Daemon(balancer.url, await replica.server.enrolled(role, name, tmp_path / name))
            for replica, (role, name) in zip(there, enrolled, strict=True)
        ]
        async with ca_renewals.there(daemons):
            async with there[0].server.operator() as operator:
                begun = await ca_renewals.renew(operator)
            async with asyncio.timeout(120):
                while not is_over(found):
                    killed += await bring_up(replicas, database_config)
                    for replica in there:
                        found = await ca_renewals.job(replica.server, begun.id) or found
                    if found is not None:
                        give_as_said(found.waits, replicas)
                    await asyncio.sleep(0.1)
        killed += await bring_up(replicas, database_config)
        assert found is not None
        assert (found.state, killed > 0) == (JobState.DONE, True)
        [new, other] = [CertificateAuthority.read(replica.data) for replica in there]
        assert new.is_as(other)
        assert (new.trusted, len(new.keys)) == ((new.certificate,), 1)
        for daemon in daemons:
            assert daemon.trusted == new.pem
            for replica in there:
                context = tls.client_context(daemon.files, tls.CONFIG_SERVER)
                async with RestClient(replica.server.url, context) as client:
                    await client.call(api.CA, Nothing())
        assert not any("this is a bug" in replica.log for replica in there)


def is_over(found: JobView | None) -> bool:
    return found is not None and found.state in (JobState.DONE, JobState.FAILED, JobState.ATTENTION)
