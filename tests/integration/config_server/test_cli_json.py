"""What each verb prints as JSON is what the API answered it, field for field: no verb has names, units or words of its own, and whoever
reads docs/api.md knows what scripts get. Each command is a process, against a real config server and real storage."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
import pytest

from config_server.cli.main import cli
from config_server.store import journal
from shared import api
from shared.api.restores import RestoreRequest
from shared.blob import BlobConfig
from shared.machine import active_side
from shared.machine.storage import MachineStorage
from tests import databases, forked
from tests.cli import ROOT
from tests.config_parts import ConfigServer, config_for, running
from tests.machine_log import ModelMachine
from tests.obedient_agent import ObedientAgent, obedient_agent

Answers = list[tuple[str, Any]]
Expected = Callable[[Answers], Any]
Step = tuple[str, Expected]

OTHERS: Final = {
    "init": "tells its steps (config_server/setup)",
    "server recover": "tells its steps (config_server/setup)",
    "lab up": "is no client of the API",
    "lab down": "is no client of the API",
    "lab start": "is no client of the API",
    "lab stop": "is no client of the API",
    "lab kill": "is no client of the API",
    "lab status": "is no client of the API",
    "completion": "prints a script",
    "storage check": "prints its findings, of storage alone (shared/blob/check/findings.py)",
    "point verify": "prints what it has read in storage, a point each (shared/recovery/verify.py)",
    "restore": "prints the manifest that it has written (shared/recovery/FORMAT.md)",
}
"""Verbs that print something of their own, and what."""


def of(route: str, field: str = "") -> Expected:
    """The last answer of this route; of it one field alone, if it is named."""

    def expected(answers: Answers) -> Any:
        answer = [answer for name, answer in answers if name == route][-1]
        return answer[field] if field else answer

    return expected


def with_job(said: str) -> Expected:
    """The machine as it was answered last, with the job that what was `said` began."""

    def expected(answers: Answers) -> Any:
        machine = [answer for name, answer in answers if name in ("machine", said)][-1]
        return {**machine, "job": of(said, "job")(answers)}

    return expected


def verbs(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield " ".join(path)
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from verbs(found, (*path, name))


@pytest.fixture
async def machine(machine_storage: MachineStorage, tmp_path: Path) -> ModelMachine:
    store = await machine_storage.find_or_create("web1")
    await active_side.find_or_begin(store, "web1", "hw1")
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    model.write(mark="m1")
    await model.publish(segments=1)
    return model


@pytest.fixture
async def server(
    machine: ModelMachine, blob_config: BlobConfig, tmp_path: Path
) -> AsyncIterator[ConfigServer]:
    async with running(config_for(tmp_path, blob=blob_config, vault_file=machine.vault.path)) as started:
        yield started


class Line:
    def __init__(self, server: ConfigServer, agent: ObedientAgent, folder: Path) -> None:
        self._agent = agent
        self._file = folder / "answers.json"
        data = server.config.data_dir
        self._options = [
            *("--server", server.url, "--token-file", str(data / "operator.token")),
            *("--ca-file", str(data / "ca.pem"), "--output", "json"),
        ]

    async def run(self, words: str) -> tuple[Any, Answers]:
        """What it printed, and what it was answered. Meanwhile the machine's agent reports."""
        done = asyncio.create_task(
            forked.run(
                *("-m", "tests.recorded_calls", str(self._file), *words.split(), *self._options),
                env=os.environ,
                cwd=ROOT,
            )
        )
        while not done.done():
            reporting = asyncio.create_task(self._agent.report(0.2, identity="hw1", boot="1"))
            await asyncio.wait({done, reporting}, return_when=asyncio.FIRST_COMPLETED)
            await reporting
        code, out, err = await done
        assert code == 0, f"{words}: {err.decode()}"
        return json.loads(out), json.loads(self._file.read_text())


async def test_what_a_verb_prints_is_what_the_api_answered(
    server: ConfigServer, machine: ModelMachine, tmp_path: Path
) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    await server.enrolled("agent", "spare", tmp_path / "spare")
    done, wrong = set[str](), list[tuple[str, Any, Answers]]()
    async with obedient_agent(server, files) as agent, server.operator() as operator:
        agent.epoch = 1
        await agent.report(identity="hw1", boot="1")
        line = Line(server, agent, tmp_path)

        async def check(words: str, expected: Expected) -> Any:
            printed, answers = await line.run(words)
            if printed != expected(answers):
                wrong.append((words, printed, answers))
            done.update(verb for verb in ALL if f"{words} ".startswith(f"{verb} "))
            return printed

        await check("machine list", of("machines", "machines"))
        await check("machine show web1", of("machine"))
        await check("machine disks web1", of("disks"))
        await check("machine copies web1", of("copies"))
        begun = await check("machine protect web1 --disk /dev/sda --no-wait", with_job("protect"))
        await check("machine protect web1 --disk /dev/sda", with_job("protect"))
        await check("machine wait web1 --for ordered --timeout 30", of("machine"))
        await check("machine watch web1 --count 1", of("machine"))
        resync = await check("machine resync web1 --yes", of("resync"))
        await check("job list", of("jobs", "jobs"))
        await check(f"job show {resync['id']}", of("job"))
        await check(f"job watch {begun['job']} --timeout 30", of("job"))
        await check(f"job retry {resync['id']}", of("job_retry"))
        await check(f"job cancel {resync['id']} --yes", of("job_cancel"))
        left = await check("machine resync web1 --yes", of("resync"))
        with databases.opened(server.config.data_dir / "state.db") as db:
            journal.hold_unended(db, "as behind a restore")
        await check(f"job abandon {left['id']} --yes", of("job_abandon"))
        await check("point create web1", of("point_create"))
        await check("machine unprotect web1 --yes", with_job("unprotect"))
        rebound = await check("machine rebind web1 --identity hw1 --yes", of("rebind"))
        assert rebound["identity"] == "hw1"
        await check("point list web1", of("points", "points"))
        await check("event list", of("events", "events"))
        await check("daemon list", of("daemons", "daemons"))
        await check("audit list --limit 5", of("audit", "entries"))
        await check("policy set gold --point-interval 60", of("policy_put"))
        await check("policy list", of("policies", "policies"))
        await check("policy show gold", of("policy_get"))
        await check("policy assign gold web1", of("policy_assign"))
        await check("policy set silver --point-interval 90", of("policy_put"))
        await check("policy delete silver", of("policy_delete"))
        granted = await operator.call(api.RESTORE, RestoreRequest(dry_run=True), machine="web1")
        assert granted.storage.id
        await check("grant list web1", of("grants", "grants"))
        await check(f"grant revoke web1 {granted.storage.id} --yes", of("grant_end"))
        await check("machine delete web1 --after 1h --yes --no-wait", with_job("delete"))
        await check("machine keep web1", of("keep", "machine"))
        await check("token create agent web9", of("token_create"))
        [token, *_] = await check("token list", of("tokens", "tokens"))
        await check(f"token end {token['id']}", of("token_end"))
        made = await check("operator add anna", of("operator_token_create"))
        await check("operator list", of("operators", "operators"))
        await check(f"operator end anna {made['id']}", of("operator_token_end"))
        await check("vault show", of("vault"))
        await check("ca show", of("ca", "trusted"))
        await check("ca trust", of("ca", "trusted"))
        renewal = await check("ca renew --hold-hours 1 --yes", of("ca_renew"))
        await line.run(f"job cancel {renewal['id']} --yes")
        await check("certificate list", of("certificates", "certificates"))
        await check("certificate revoke agent:spare --yes", of("certificate_revoke", "certificates"))
    assert wrong == []
    assert ALL - OTHERS.keys() - done == set(), "a verb without a line here"


ALL: Final = frozenset(verbs(cli))
