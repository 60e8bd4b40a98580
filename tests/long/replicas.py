"""Two config servers on one PostgreSQL under the reports of 200 machines, while one after the other is killed, stopped, and brought to the
next version, which adds to the database; in between the older one is killed and starts behind the newer, and the newer one goes back to
this version once: no machine is called silent that reports, nothing is told twice, no job stands still, and no operator's call fails when
it is made once more."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from shared import api
from shared.api.commands import Command, CommandKind
from shared.api.events import EventKind, EventQuery, EventView
from shared.api.jobs import JobQuery, JobState
from shared.api.points import PointRequest
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.desired import Desired, Wish
from shared.errors import DisconnectedError, LaneTakenError, OtherServerGoneError, UnderstudyError
from shared.status import AgentDisk, AgentReport, AvailableDisk
from shared.trust.tls import TlsFiles
from tests import next_program
from tests.long.story import Result
from tests.postgres import Postgres
from tests.replicas import Balancer, Replica

_T = TypeVar("_T")
_SILENCE: Final = (DisconnectedError.code,)

MACHINES: Final = 200
EACH_S: Final = 20.0
"""Between two ends of a server."""
AWAY_S: Final = 3.0
"""Before it is started again."""
STOPPED_S: Final = 25.0
"""How long one of them is stopped, and not killed: longer than it takes to be called silent."""
REPORT_S: Final = 5.0
WRITTEN_S: Final = 2.0
"""A server has written by then what it heard."""
SETTLES_S: Final = 40.0
"""A server that ends is found out, its leases end, and jobs and silence are looked at."""
ENOUGH_S: Final = 60.0
"""For a job."""
CALL_S: Final = 1.0
"""Between two calls of the operator."""
TURNS: Final = (
    "killed", "killed", "stopped", "killed", "upgraded",  # the first of them, ...
    "killed", "put back", "stopped", "upgraded", "upgraded",  # ... which goes back once, and forth again; then the other one
)  # fmt: skip
"""What is done to one after the other, in some five minutes."""


class Machine:
    """An agent that reports, places marks, and begins a new epoch when it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = 1
        self.state = "ordered"
        self.changes = 1
        """Of its state, the first from not being connected."""
        self._sent = ""
        self._heard_s: float | None = None
        """When it was answered first that it reads its disks."""
        self._wish: Wish | None = None

    def said(self) -> AgentReport:
        disk = AgentDisk(name="sda", device="/dev/sda", sectors=2048, mode="ordered", state="ordered")
        self._sent = self.state
        return AgentReport(
            machine=self.name,
            state=self._sent,
            epoch=self.epoch,
            disks=[disk],
            available=[AvailableDisk(device="/dev/sda", sectors=2048)],
            wish=self._wish,
        )

    async def obey(self, desired: Desired) -> None:
        """With each answer. It reads its disks until that was heard twice: of two answers that are apart one server has written the
        first. (A report that hangs at a server that was stopped is heard by nobody for longer than it would read.)"""
        self._wish = desired.wish or self._wish
        if self._sent == self.state == "resync":
            now_s = time.monotonic()
            self._heard_s = self._heard_s or now_s
            if now_s - self._heard_s > WRITTEN_S:
                self.state = "ordered"

    async def handle(self, command: Command) -> dict[str, Any]:
        if command.kind == CommandKind.RESYNC:
            self.epoch += 1
            self.changes += 2 * (self.state == "ordered")
            self.state, self._heard_s = "resync", None
        return {}


class Operator:
    """Asks by the balancer; a call that fails is made once more."""

    def __init__(self, client: RestClient) -> None:
        self._client = client
        self.calls = 0
        self.again = 0
        self.slowest_s = 0.0

    async def __call__(self, call: Callable[[RestClient], Awaitable[_T]]) -> _T:
        self.calls += 1
        began_s = time.monotonic()
        try:
            return await call(self._client)
        except LaneTakenError:
            raise
        except UnderstudyError:
            self.again += 1
            return await call(self._client)
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)


def replicas(machines: int = MACHINES) -> Result:
    postgres = Postgres()
    try:
        postgres.start()
        url = postgres.url(_made(postgres))
        with tempfile.TemporaryDirectory(prefix="understudy-replicas-") as folder:
            return asyncio.run(_story(Path(folder), url, machines))
    finally:
        postgres.remove()


def _made(postgres: Postgres) -> str:
    postgres.make_template()
    return postgres.made()


async def _story(folder: Path, url: str, count: int) -> Result:
    pair = [Replica(folder / name, url, name) for name in ("cs-a", "cs-b")]
    await pair[0].start()
    newer = next_program.make(folder / "next")
    pair[1].join(pair[0])
    await pair[1].start()
    machines = [Machine(f"web{number:03}") for number in range(count)]
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        for one in pair:
            stack.push_async_callback(one.end)
        balancer = await stack.enter_async_context(Balancer(pair).running())
        operator = Operator(
            await stack.enter_async_context(
                RestClient(
                    balancer.url, pair[0].server.anonymous_context(), token=pair[0].server.operator_token
                )
            )
        )
        async with asyncio.TaskGroup() as tasks:
            try:
                for machine in machines:
                    files = await pair[0].server.enrolled("agent", machine.name, folder / machine.name)
                    await _protect(operator, machine.name)
                    tasks.create_task(_report(machine, balancer.url, files, stop))
                await _all_are_there(operator, machines)
                used_s = {one: _cpu_s(one.pid) for one in pair}
                began_s = time.monotonic()
                await asyncio.sleep(EACH_S)  # both live: what they cost
                cost = [(_cpu_s(one.pid) - used_s[one]) / (time.monotonic() - began_s) for one in pair]
                ends = asyncio.Event()
                ended = tasks.create_task(_end_in_turns(pair, newer, balancer, ends))
                asked = await _operate(operator, machines, ends)
                ends_of, stops_of = await ended
                await asyncio.sleep(SETTLES_S)
                await _all_are_there(operator, machines)
                await _jobs_have_ended(operator, asked)
                found = await _events(operator)
                versions = [await _version(one) for one in pair]
            finally:
                stop.set()
    _check(found, machines, stops=stops_of)
    if set(versions) != {next_program.VERSION}:
        raise AssertionError(f"they run {versions}")
    for one in pair:
        if "this is a bug" in one.log:
            raise AssertionError(f"a bug in {one.name}: {one.log}")
    return {
        "machines": count,
        "ends": ends_of,
        "calls": operator.calls,
        "made_again": operator.again,
        "slowest_call_s": round(operator.slowest_s, 1),
        "jobs": len(asked),
        "of_a_core": [round(share, 3) for share in cost],
    }


async def _report(machine: Machine, url: str, files: TlsFiles, stop: asyncio.Event) -> None:
    client = ControlClient(url, files, on_desired=machine.obey)
    try:
        await client.serve(machine.said, machine.handle, stop, interval_s=REPORT_S)
    finally:
        await client.close()


async def _protect(operator: Operator, name: str) -> None:
    await operator(
        lambda client: client.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine=name)
    )


async def _all_are_there(operator: Operator, machines: list[Machine]) -> None:
    names = {machine.name for machine in machines}
    async with asyncio.timeout(60):
        while True:
            found = (await operator(lambda client: client.call(api.DAEMONS, Nothing()))).daemons
            if {one.name for one in found if one.connected} == names:
                return
            await asyncio.sleep(1)


async def _end_in_turns(
    pair: list[Replica], newer: Path, balancer: Balancer, ends: asyncio.Event
) -> tuple[Counter[str], Counter[str]]:
    """Each in its turn is killed, or stopped for a while, or ended and started as `newer`, as in an upgrade, or as this program again. How
    often what was done, and who was stopped how often."""
    done, stops = Counter[str](), Counter[str]()
    try:
        for how, one in zip(TURNS, itertools.cycle(pair), strict=False):
            done[how] += 1
            match how:
                case "stopped":
                    stops[one.name] += 1
                    one.send(signal.SIGSTOP)
                    await asyncio.sleep(2)
                    balancer.out.add(one)  # which looks whether it answers
                    await asyncio.sleep(STOPPED_S - 2)
                    one.send(signal.SIGCONT)
                    balancer.out.discard(one)
                case "upgraded" | "put back":
                    await one.end(signal.SIGTERM)
                    one.program = newer if how == "upgraded" else None
                    await one.start()
                case _:
                    await one.end()
                    await asyncio.sleep(AWAY_S)
                    await one.start()
            await asyncio.sleep(EACH_S)
        return done, stops
    finally:
        ends.set()


async def _operate(operator: Operator, machines: list[Machine], ends: asyncio.Event) -> list[str]:
    """What people do meanwhile; the jobs that were begun."""
    chance = random.Random(8)
    jobs: list[str] = []
    while not ends.is_set():
        machine = chance.choice(machines)
        with contextlib.suppress(LaneTakenError):
            if chance.random() < 0.3:
                asked = await operator(
                    lambda client, name=machine.name: client.call(api.RESYNC, Nothing(), machine=name)  # type: ignore[misc]
                )
                jobs.append(asked.id)
            else:
                await operator(
                    lambda client, name=machine.name: client.call(
                        api.POINT_CREATE, PointRequest(), machine=name
                    )  # type: ignore[misc]
                )
        await operator(lambda client: client.call(api.MACHINES, Nothing()))
        await asyncio.sleep(CALL_S)
    return jobs


async def _jobs_have_ended(operator: Operator, asked: list[str]) -> None:
    """A resync that was asked for while it waited to be taken is the same one."""
    async with asyncio.timeout(ENOUGH_S):
        while True:
            found = (await operator(lambda client: client.call(api.JOBS, JobQuery(limit=1000)))).jobs
            states = {job.id: job.state for job in found}
            if all(states[id_] is JobState.DONE for id_ in asked):
                return
            if bad := [job for job in found if job.state in (JobState.FAILED, JobState.CANCELLED)]:
                raise AssertionError(f"jobs ended otherwise: {bad}")
            await asyncio.sleep(1)


async def _events(operator: Operator) -> list[EventView]:
    return (await operator(lambda client: client.call(api.EVENTS, EventQuery(limit=1000)))).events


async def _version(one: Replica) -> str:
    async with one.server.operator() as client:
        return (await client.call(api.HEALTH, Nothing())).version


def _check(found: list[EventView], machines: list[Machine], *, stops: Counter[str]) -> None:
    """`stops`: how often which server stood still."""
    problems = [event for event in found if event.kind is EventKind.PROBLEM]
    if silent := [event for event in problems if event.code in _SILENCE]:
        raise AssertionError(f"{len(silent)} times somebody was called silent: {silent[:5]}")
    # A server that stands still for 25 s is gone, each time; one that is killed, or upgraded, is there again before anybody has noticed.
    gone = [event for event in problems if event.code == OtherServerGoneError.code]
    told = Counter(event.what.split()[2] for event in gone)
    if not told <= stops or not all(event.resolved for event in gone):
        raise AssertionError(f"{stops} stood still, and {told} were called gone: {gone}")
    twice = Counter((event.object, event.code) for event in problems if event not in gone)
    if more := {what: count for what, count in twice.items() if count > 1}:
        raise AssertionError(f"events that came again: {more}")
    changes = defaultdict[str, list[str]](list)
    for event in reversed(found):
        if event.kind is EventKind.STATE and " went from " in event.what:
            changes[event.object].append(event.what.partition(" went from ")[2])
    for machine in machines:
        said = changes[machine.name]
        if len(found) < 1000 and len(said) != machine.changes:
            raise AssertionError(
                f"{machine.name} changed its state {machine.changes} times, and is said: {said}"
            )
        for one, other in itertools.pairwise(said):
            if one.rpartition(" to ")[2] != other.partition(" to ")[0]:
                raise AssertionError(f"the changes of {machine.name} do not follow each other: {said}")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
