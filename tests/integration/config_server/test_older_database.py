"""A restored, older database of the config server: no machine stops being protected, no token works twice, due deletions wait. One story,
with the tools that people call, a server over HTTPS, and real storage. (What is judged how stands in the tests of each part.)
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from config_server.config import ConfigServerConfig
from config_server.data_folder import tools
from shared import api
from shared.api.events import EventQuery
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.blob import BlobConfig
from shared.control import enrol
from shared.control.rest import RestClient
from shared.desired import Verb
from shared.errors import CertificateRevokedError, TokenUnknownError, UnderstudyError
from shared.machine.storage import MachineStorage
from shared.trust.tls import TlsFiles
from tests.config_parts import ConfigServer, config_for, daemon, running, until
from tests.deletions import delete, hurry, in_storage, is_gone, pass_delay, shown, waits
from tests.obedient_agent import ObedientAgent, obedient_agent

STOPPED: Final = "stopped"
"""When the backup was made; protected since."""
KEPT: Final = "kept"
"""To be deleted when the backup was made; taken back since, and protected."""
GONE: Final = "gone"
"""To be deleted when the backup was made; deleted since."""
DUE: Final = "due"
"""To be deleted when the backup was made, and still."""
NEW: Final = "new"
"""Protected when the backup was made; somebody wants it deleted since."""
ALL: Final = (STOPPED, KEPT, GONE, DUE, NEW)


def tool(verb: str, config: ConfigServerConfig, file: Path) -> None:
    """`python -m config_server backup`, or `restore`."""
    blob = config.blob
    assert blob is not None
    text = f'data_dir = "{config.data_dir}"\n[blob]\nurl = "{blob.url}"\ncontainer = "{blob.container}"\n'
    text += f'account_key_file = "{blob.account_key_file}"\nca_file = "{blob.ca_file}"\n'
    toml = config.data_dir.parent / "config-server.toml"
    toml.write_text(text)
    way = "--to" if verb == "backup" else "--from"
    assert tools.main(verb, ["--config", str(toml), way, str(file)]) == 0


@contextlib.asynccontextmanager
async def agents_of(
    server: ConfigServer, files: dict[str, TlsFiles], agents: dict[str, ObedientAgent]
) -> AsyncIterator[dict[str, ObedientAgent]]:
    """The same hosts, whichever server they talk to: what they go by and capture they bring along."""
    async with contextlib.AsyncExitStack() as stack:
        now: dict[str, ObedientAgent] = {}
        for name in files:
            now[name] = await stack.enter_async_context(obedient_agent(server, files[name], name))
            if (before := agents.get(name)) is not None:
                now[name].wish, now[name].captured = before.wish, before.captured
        yield now


async def report(agent: ObedientAgent) -> None:
    """Twice: it hears, and says that it does so."""
    for _ in range(2):
        await agent.report()
        stops = agent.wish is not None and agent.wish.verb is Verb.STOP
        agent.captured = () if stops else ("sda",)


async def protect(operator: RestClient, name: str) -> None:
    await operator.call(api.PROTECT, Protection(disks=["/dev/sda"]), machine=name)


def verb_of(agent: ObedientAgent) -> Verb | None:
    return agent.wish.verb if agent.wish is not None else None


async def test_no_machine_stops_no_token_works_twice_and_due_deletions_wait(
    tmp_path: Path,
    blob_config: BlobConfig,
    machine_storage: MachineStorage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hurry(monkeypatch)
    config, file = config_for(tmp_path, blob=blob_config), tmp_path / "backup.tar"
    containers = {name: (await machine_storage.find_or_create(name)).container for name in ALL}
    agents: dict[str, ObedientAgent] = {}

    # ---- until the backup
    async with running(config) as server, server.operator() as operator:
        files = {name: await server.enrolled("agent", name, tmp_path / name) for name in ALL}
        async with agents_of(server, files, agents) as agents:
            for name in ALL:
                await report(agents[name])
                await protect(operator, name)
                await report(agents[name])
            await operator.call(api.UNPROTECT, Nothing(), machine=STOPPED)
            for name in (KEPT, GONE, DUE):
                await delete(operator, name)
            for name in ALL:
                await report(agents[name])
            used = (await server.token("agent", "late")).token
            unused = (await server.token("agent", "later")).token
            tool("backup", config, file)

            # ---- behind it
            await enrol.enrol(server.url, used, tmp_path / "late")
            await protect(operator, STOPPED)
            await operator.call(api.KEEP, Nothing(), machine=KEPT)
            await protect(operator, KEPT)
            await delete(operator, NEW)
            for name in ALL:
                await report(agents[name])
            pass_delay(config.data_dir, GONE)
            await until(lambda: is_gone(operator, GONE))
            assert (await in_storage(machine_storage))[0] == {*containers.values()} - {containers[GONE]}

    # ---- the backup is put back
    tool("restore", config, file)
    assert "To be said again: 3 deletions of machines" in capsys.readouterr().out
    for name in (KEPT, DUE):  # all of it, as if the server of the backup had run on
        pass_delay(config.data_dir, name)
    left = {*containers.values()} - {containers[GONE]}
    async with (
        running(config) as server,
        server.operator() as operator,
        agents_of(server, files, agents) as agents,
    ):
        for name in (STOPPED, KEPT, DUE, NEW):
            await report(agents[name])
        # No machine stops being protected.
        assert {name: verb_of(agents[name]) for name in agents if name != GONE} == {
            STOPPED: Verb.PROTECT, KEPT: Verb.PROTECT, DUE: Verb.STOP, NEW: Verb.STOP,
        }  # fmt: skip
        assert [(await shown(operator, name)).protected for name in (STOPPED, KEPT)] == [True, True]
        # No token works twice, nor one that may have been used.
        for token in (used, unused):
            with pytest.raises(TokenUnknownError):
                await enrol.enrol(server.url, token, tmp_path / "thief")
        async with daemon(server, files[GONE]) as client:
            with pytest.raises(CertificateRevokedError):
                await client.report({"state": "ordered"})

        # Due deletions wait, with an event for each, ...
        async def all_wait() -> bool:
            return [await waits(operator, name) for name in (KEPT, GONE, DUE)] == [["US631"]] * 3

        await until(all_wait)
        open_ = (await operator.call(api.EVENTS, EventQuery(open=True))).events
        assert {event.object for event in open_ if event.code == "US631"} == {KEPT, GONE, DUE}
        assert (await shown(operator, NEW)).deletion is None, "of which the backup knows nothing"
        assert (await in_storage(machine_storage))[0] == left

        # ... until a person says it again.
        await operator.call(api.KEEP, Nothing(), machine=KEPT)
        for name in (DUE, GONE):
            await delete(operator, name)
            pass_delay(config.data_dir, name)
        await report(agents[DUE])
        await until(lambda: is_gone(operator, DUE))
        assert (await in_storage(machine_storage))[0] == left - {containers[DUE]}
        with contextlib.suppress(UnderstudyError):
            await report(agents[KEPT])
        assert (await shown(operator, KEPT)).protected
