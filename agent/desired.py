"""What the agent goes by: its configuration, and over it the wish that the config server told last (package shared's `desired`).

The wish is kept in `desired.json` in the agent's state_dir, so that it holds while the config server is away:

    {"v": 1, "machine": "web1", "identity": "smbios:4c4c4544-…/…",
     "wish": {"mark": {"incarnation": "5f0c…", "number": 7, "act": "9d41…"}, "verb": "protect",
              "disks": [{"device": "/dev/sdb", "id": "sdb", "identity": "wwid:naa.5000c500a1b2c3d4"}],
              "process_servers": ["ps1.example.com:9443"]},
     "settings": {"point_interval_s": 60.0}}

`wish` is null when none was ever told; the fields of each are those of `shared.desired`. The file is replaced as a whole. It counts
for the machine and the hardware alone that it names: a copy of this folder, or a disk that was put into another machine, would have it
capture what stands under a stranger's paths. One of another is set aside (`desired.json.foreign`), said (US585), and never gone by: what is
wanted of this one its configuration says, and the config server, which has a machine on other hardware begin anew. Where capture is
pinned, and the hardware alone is called otherwise, somebody has set `identity` in agent.toml since: it counts, and is written anew.

| the file | what holds |
|---|---|
| has no wish, or is another machine's or of other hardware | the configuration |
| is not there | the configuration; where more is captured than that names, nobody knows: it was lost |
| has a wish | the wish; what it leaves open (no disks, no process servers) is the configuration's |
| cannot be read, is damaged, or of another version | nobody knows (US620): what is captured, and what the configuration names |

Each agent that starts writes one, be it without a wish: so a disk that a person takes out of agent.toml is captured no more, and one of
which only a lost file said that it is wanted is.

**First the file, then the act.** A wish is done when it is durable here, and not before. So whoever is killed in between, or in the middle
of doing it, does the rest at its next start, since each act has one end, and begins wherever it was left: to detach is to remove what is
pinned, and to protect is to fit what is pinned to what is wanted. The other way round a kill would leave an act that the next start
takes back: capture that was detached would be attached again, with a full replication, and nobody asked for it. A wish that cannot be
written is not done (US621); it is told again with the next answer.

**Nobody who says nothing ends protection.** Where neither the wish nor the configuration names a disk, that means those that are captured;
where nothing is captured, none. Where nobody knows what is wanted, both count, since that protects most. `stop` and fewer disks are said
in so many words. A wish with a lower number than the one that holds is no act: whoever tells it does not know what this agent said in the
same exchange.

*Settings* are used at once, written or not: nothing can be lost by them. One that is told as null is the configuration's again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import msgspec

from agent.capture.bindings import NotedDisk
from agent.config import AgentConfig, ProtectedDisk, check_disks, check_servers
from shared import crashpoints, decoding
from shared.daemon import logging
from shared.daemon.single_writer import SingleWriter
from shared.daemon.trouble import Trouble
from shared.desired import Desired, Settings, Verb, WantedDisk, Wish
from shared.errors import (
    UNDECODABLE,
    ConfigError,
    NoThreadError,
    UnderstudyError,
    WishDamagedError,
    WishForeignError,
    WishRefusedError,
    WishUnwrittenError,
    cause_of,
)
from shared.host import durable
from shared.status import Problem
from shared.vocabulary import Severity

_log = logging.get()

NAME: Final = "desired.json"
_VERSION: Final = 1
_ASIDE: Final = ".foreign"
"""Behind the name of a file of another machine."""


class Goal(msgspec.Struct, frozen=True):
    """What is to be brought about. Two that are equal need nothing to be done."""

    is_stopped: bool = False
    disks: tuple[WantedDisk, ...] = ()
    """None: those that are captured."""
    servers: tuple[str, ...] = ()
    """`host:port`, the one to be preferred first."""


class _Document(msgspec.Struct):
    v: int
    wish: Wish | None
    settings: Settings | None = None
    machine: str = ""
    identity: str = ""
    """Of the hardware, as the agent reports it; empty where there is nothing that tells it from others."""


Held = tuple[Wish | None, WishDamagedError | None]
"""Which wish holds, and why it is not known."""


class WishFile:
    """The wish that holds, in the one process that goes by it. `load` first."""

    def __init__(self, state_dir: Path, machine: str, identity: str) -> None:
        self.path: Final = state_dir / NAME
        self._whose: Final = machine, identity
        self.wish: Wish | None = None
        """None: the configuration alone counts; or, with `damage`, nobody knows."""
        self.settings: Settings | None = None
        self.damage: WishDamagedError | None = None
        """Why it is not known what is wanted."""
        self.is_there = True
        """Whether anything was ever written here, as `load` found it."""
        self._foreign: WishForeignError | None = None
        """What was found here is another's; None again once something is told."""
        self._news = asyncio.Event()
        """Set when another wish holds, or other settings."""
        self._written: tuple[Wish | None, Settings | None] | None = None, None
        """What the file says; None: not known, since a write failed half-way, or what is there cannot be read."""
        self._told: tuple[Wish | None, Settings | None] = None, None
        """What it is to say."""
        self._writer: Final = SingleWriter("wish", self._write)
        self._writing: asyncio.Task[bool] | None = None
        self._refused: Final = Trouble("what the config server wants", lambda: None)
        self._unwritten: Final = Trouble("the file of what the config server wants", lambda: None)

    def load(self, *, goes_on: bool = False) -> None:
        """Blocks. What cannot be read is said, and no reason not to start. `goes_on`: capture is pinned in the kernel of this host, which
        no copy of the folder brings along; so if the file is this machine's, it was written here, and has learnt what tells it from others
        since."""
        try:
            document = _read(self.path)
            is_ours = (document.machine, document.identity) == self._whose
            if not is_ours and not (goes_on and document.machine == self._whose[0]):
                self._set_aside(document)
                return
            if document.wish is not None:
                check(document.wish)
        except FileNotFoundError:
            self.is_there = False
        except OSError as exc:
            self._damaged(cause_of(exc))
        except (*UNDECODABLE, ConfigError) as exc:
            self._damaged(str(exc))
        else:
            self.wish, self.settings = self._written = self._told = document.wish, document.settings
            if not is_ours:
                self._written = None
                with contextlib.suppress(OSError):  # it is tried again with the next answer
                    durable.replace_file(self.path, self._document())
                    self._written = self._told

    def begin(self, unnamed: Collection[str]) -> None:
        """Where nothing is there. `unnamed`: disks that are captured, and not named by the configuration: somebody wanted them. Blocks."""
        if unnamed:
            self._damaged(
                f"it is not there, and the configuration does not name {', '.join(unnamed)}: captured"
            )
            return
        with contextlib.suppress(OSError):  # the next start tries it again
            durable.replace_file(self.path, self._document())

    def _damaged(self, cause: str) -> None:
        self.damage = WishDamagedError(
            f"What the config server wants of this agent could not be read ({self.path})", cause=cause
        )
        self._written = None
        _log.error("the wish is not known: what is captured stays captured", **self.damage.as_dict())

    def _set_aside(self, document: _Document) -> None:
        """Where even that fails, it is not gone by all the same."""
        aside = self.path.with_name(NAME + _ASIDE)
        try:
            durable.remove_file(aside)
            durable.move_file(self.path, aside)
            kept = f"it lies in {aside} now"
        except OSError as exc:
            kept = f"it could not be moved to {aside}: {cause_of(exc)}"
        whose, ours = (_in_words(*each) for each in ((document.machine, document.identity), self._whose))
        self._foreign = WishForeignError(
            f"{self.path} says what was wanted of another machine, and is not gone by",
            cause=f"it is of {whose}, and this is {ours}; {kept}",
        )
        _log.warning("the wish is another machine's", **self._foreign.as_dict())

    @property
    def held(self) -> Held:
        return self.wish, self.damage

    def goal(self, config: AgentConfig) -> Goal:
        wish = self.wish
        if wish is None:
            return Goal(disks=() if self.damage else config.protected, servers=config.servers)
        if wish.verb is Verb.STOP:
            return Goal(is_stopped=True)
        return Goal(disks=wish.disks or config.protected, servers=wish.process_servers or config.servers)

    def point_interval_s(self, config: AgentConfig) -> float:
        told = self.settings.point_interval_s if self.settings is not None else None
        return config.point_interval_s if told is None else told

    @property
    def problems(self) -> list[Problem]:
        found: list[UnderstudyError | None] = [self.damage, self._refused.error, self._unwritten.error]
        problems = [Problem(**error.as_dict()) for error in found if error is not None]
        if self._foreign is not None:
            problems.append(Problem(**self._foreign.as_dict(), severity=Severity.WARNING))
        return problems

    async def take(self, told: Desired) -> None:
        """What an answer of the config server says. Returns at once; `until` tells when something follows from it. (The state_dir may lie
        on a disk that hangs: reports go on.)"""
        if told.settings is not None and told.settings != (self.settings or Settings()):
            self.settings = told.settings
            self._news.set()
        wish = self._as_far_as_possible(told.wish)
        if wish is None and self.damage is not None:
            return  # to write that nothing is wanted would be to say so
        if (wish, self.settings) != self._told:
            self._told = wish, self.settings
            self._writer.changed()
        if self._told == self._written:
            self._unwritten.report(None)
        elif self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._writer.written(), name="wish")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until it is true; looked at now, and whenever another wish holds, or other settings."""
        while not condition():
            self._news.clear()
            await self._news.wait()

    async def written(self) -> bool:
        """Whether what was told last is on the disk and holds; tried once."""
        return await self._writer.written()

    async def close(self) -> None:
        """Waits for a write that is under way."""
        await self._writer.close()
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)

    # -- inside --------------------------------------------------------------------------------------------

    def _as_far_as_possible(self, told: Wish | None) -> Wish | None:
        """What is to hold: what was told, unless it is no act, or no agent can do it."""
        if told is None:
            return self.wish
        if self.wish is not None and told.mark.number < self.wish.mark.number:
            _log.debug("an outdated wish is left", told=told.mark.number, ours=self.wish.mark.number)
            return self.wish
        try:
            check(told)
        except ConfigError as exc:
            why = f"{exc.what}: {exc.cause}" if exc.cause else exc.what
            self._refused.report(
                WishRefusedError("What the config server wants of this agent is not possible", cause=why)
            )
            return self.wish
        self._refused.report(None)
        return told

    def _document(self) -> bytes:
        """Of what was told last."""
        document = _Document(_VERSION, *self._told, *self._whose)
        return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"

    async def _write(self) -> bool:
        told, data = self._told, self._document()
        crashpoints.reach("wish.before-write")
        try:
            await asyncio.to_thread(durable.replace_file, self.path, data)
        except (OSError, NoThreadError) as exc:
            error = WishUnwrittenError(
                f"What the config server wants could not be written to {self.path}", cause=cause_of(exc)
            )
            self._written = None
            self._unwritten.report(error)
            return False
        crashpoints.reach("wish.after-write")
        self._written = told
        self._unwritten.report(None)
        wish, _ = told
        if wish is not None:
            self._foreign = None
        if wish != self.wish or self.damage is not None:
            _log.info("another wish holds", wish=msgspec.to_builtins(wish))
            self.wish, self.damage = wish, None
            self._news.set()
        return True


def _read(path: Path) -> _Document:
    """Blocks. Raises OSError, UNDECODABLE."""
    document = decoding.decode(path.read_bytes(), type=_Document)
    if document.v != _VERSION:
        raise ValueError(f"its format is {document.v}")
    return document


def told(state_dir: Path, machine: str, identity: str) -> Verb | None:
    """What is wanted of the machine, as its agent was told last; None: nobody has said anything, or it cannot be read, which its agent
    says. For others than the agent: nothing is changed. Blocks."""
    try:
        document = _read(state_dir / NAME)
    except (OSError, *UNDECODABLE):
        return None
    is_ours = (document.machine, document.identity) == (machine, identity)
    return document.wish.verb if is_ours and document.wish is not None else None


def _in_words(machine: str, identity: str) -> str:
    return f"{machine or 'a machine without a name'} on {identity or 'hardware without an identity'}"


def check(wish: Wish) -> None:
    """Raises ConfigError when no agent can do it. Whether its disks are there is another thing."""
    if wish.verb is Verb.OTHER:
        raise ConfigError("It has a verb that this version does not know", action="Upgrade the agent.")
    for disk in wish.disks:
        if not disk.device.isprintable():
            raise ConfigError(
                f"The path of disk {disk.id or disk.device!r} is none",
                cause=f"{disk.device!r} has characters that no path of a disk has",
                action="Write it as `understudy machine disks` shows it.",
            )
    check_disks(wish.disks)
    check_servers(wish.process_servers)


def applied(config: AgentConfig, goal: Goal, disks: tuple[WantedDisk, ...], interval_s: float) -> AgentConfig:
    """The configuration as a goal makes it. `disks`: the goal's, or those that are captured. Which disk an id of the configuration is, that
    says, unless the goal says more than a path; an id that it does not say was given by an agent."""
    own = {disk.id: disk for disk in config.disk if disk.id}
    return msgspec.structs.replace(
        config,
        disks=[],
        disk=[
            own[disk.id]
            if disk.id in own and not disk.identity
            else (ProtectedDisk if disk.id is None or disk.identity else NotedDisk)(
                disk.device, disk.id, disk.identity
            )
            for disk in disks
        ],
        process_server="",
        process_servers=[*goal.servers],
        point_interval_s=interval_s,
    )
