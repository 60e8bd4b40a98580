"""Wiring of the config server: files → database and CA → port → READY; and what it does by itself every few
seconds."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from aiohttp import web

from config_server.config import ConfigServerConfig
from config_server.data_folder import belonging, first_operator, lock
from config_server.data_folder.restoring import remove_new
from config_server.identity import ca_note
from config_server.identity.ca import CertificateAuthority
from config_server.identity.own_certificate import OwnCertificate
from config_server.jobs.janitor import Janitor
from config_server.jobs.kinds import Kinds
from config_server.jobs.runner import Runner
from config_server.operations import keys, protection_jobs, rebind_job, restore_job, resync
from config_server.operations.call import Operator
from config_server.operations.control import Control
from config_server.operations.deleting import Deleting
from config_server.operations.deletion_sweep import PASS_S, DeletionSweep
from config_server.operations.enrolment import Identity
from config_server.operations.granting import SWEEP_S, Granting
from config_server.operations.jobs import DRIVEN, Jobs, problem_of
from config_server.operations.keys import Keys
from config_server.operations.known_operators import KnownOperators
from config_server.operations.machines import Machines
from config_server.operations.operators import Operators
from config_server.operations.points import Points
from config_server.operations.policies import PolicyOperations
from config_server.operations.protecting import Protecting
from config_server.operations.replicas import BEAT_S, Replicas
from config_server.operations.reporting import Reporting, log_changes
from config_server.operations.restores import Restores, note_ended
from config_server.operations.revoking import Revoking
from config_server.operations.sides import Sides
from config_server.recovery.generation import LOOK_S as FORCE_S
from config_server.recovery.generation import Force
from config_server.recovery.keeping import LOOK_S as KEEP_S
from config_server.recovery.keeping import Keeping
from config_server.recovery.pointing import Pointing
from config_server.rules import wrong
from config_server.rules.clock import SECOND_NS
from config_server.rules.facts import SELF, facts_of, replicates, reported_ns
from config_server.rules.machine import Machine
from config_server.rules.twins import SILENT_S
from config_server.storage.account import Storage
from config_server.store import commands, events, inventory, jobs, lasting_record, replicas
from config_server.store.database import Connection, Database
from config_server.store.files import DATABASE_FILE
from config_server.web import routes
from config_server.web.binding import Binder
from config_server.web.listener import Listener
from config_server.web.routes import Handlers
from shared.api.events import EventView
from shared.api.permissions import ALL
from shared.api.points import PointView
from shared.daemon import logging, service
from shared.errors import (
    ConfigError,
    DatabaseError,
    DataFolderInUseError,
    LookFailedError,
    RequestError,
    TransientError,
    UnderstudyError,
)
from shared.host import durable
from shared.keys.vault import FileVault
from shared.keys.vault_record import RecordedVault
from shared.status import Problem
from shared.waiting import wait_for

_log = logging.get()

_THOUGHT_OF: Final = (UnderstudyError, OSError)

OPERATOR: Final = belonging.OPERATOR
TOKEN_FILE: Final = belonging.TOKEN_FILE
_SWEEP_S: Final = 5.0
_LEASE_S: Final = 15.0
"""Of several config servers the one that swept last goes on, until it has not for so long."""
_LASTING_NS: Final = 60 * SECOND_NS
"""How often it is written down what is not well and how long it has lasted: so much of it a restart may forget."""
_BEAT_S: Final = 1.0
_TIDY_S: Final = 30.0
"""How often what was undone is looked for once more."""
_GAP_S: Final = SILENT_S / 2
"""A shorter one makes nobody look silent who reports every two seconds."""
_VAULT_S: Final = 600.0
"""How often the vault is compared with storage, ..."""
_VAULT_WRONG_S: Final = 10.0
"""... and while something is wrong about it."""
_AGAIN_S: Final = 60.0
"""After a look through storage that failed."""
_GRANTS: Final = "grants"
_SHUTDOWN_S: Final = 3.0
_LINGERING_S: Final = 1.0
"""So long a refused request's body is read on, so that its sender can read the answer."""


class _Part(NamedTuple):
    """What runs beside the others until the stop."""

    name: str
    work: Coroutine[Any, Any, None]
    ends_itself: bool = False
    """It looks at `stop`, and what it has begun is done first. Others wait, for storage or for ever, and are cancelled."""


async def run(
    config: ConfigServerConfig, stop: asyncio.Event, ready: Callable[[int], None] = lambda _port: None
) -> None:
    """Serve until `stop` is set; `ready` is called with the port once calls are answered.

    Raises ConfigError, DataFolderInUseError, IdentityFileError, ListenError, StorageError; UsageError for a vault file that cannot be used.
    """
    _make_private(config.data_dir)
    with lock.held(config.data_dir):
        await _run(config, stop, ready)


async def _run(config: ConfigServerConfig, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
    folder = config.data_dir
    belonging.check_folder(folder, has_database=config.database.is_file)
    ca_note.check_there(folder, config.vault_file)
    with durable.named(f"The data folder {folder} could not be used"):
        remove_new(folder)
        ca = CertificateAuthority.open(folder)
        ca_note.check_same(folder, ca, config.vault_file)
        own = OwnCertificate(config, ca)
    file = FileVault(config.vault_file) if config.vault_file is not None else None
    db = await Database.configured(config.database, folder / DATABASE_FILE)
    storage = Storage(config.blob, file)
    control = Control(db, ca, storage, dt.timedelta(days=config.certificate_days))
    sides = Sides(control)
    revoking = Revoking(control)
    others = Replicas(control, sides, config.name, take_revocations=revoking.take) if db.is_shared else None
    known = Identity(control, sides, revoking)
    granting = Granting(control, config.grant_hours)
    try:
        with durable.named(f"The data folder {folder} could not be used"):
            await db.run(lambda opened: belonging.check_parts(opened, ca, _token(folder / TOKEN_FILE)))
            await db.run(lambda opened: belonging.check_beside(opened, _token(folder / TOKEN_FILE)))
            await _recover(control, folder)
            ca_note.note_if_possible(ca, config.vault_file)
            await revoking.recover()
            await known.recover()
            if others is not None:
                await others.join()
            keeping = await _begin_in_force(control, config, file)
            pointing = Pointing(config, ca, control.force)
        vault = None if file is None else await _recorded(file, storage, control)
        listener = Listener.open(config.listen, config.port, own.context)
        protecting = Protecting(control, sides)
        deletions = DeletionSweep(control, sides, revoking)
        handlers = Handlers(
            identity=known,
            revoking=revoking,
            reporting=Reporting(control, sides),
            machines=Machines(control),
            points=Points(control),
            restores=Restores(control, granting),
            jobs=Jobs(control),
            protecting=protecting,
            deleting=Deleting(control, protecting),
            policies=PolicyOperations(control),
            granting=granting,
            keys=Keys(control, vault),
            operators=Operators(control),
            sides=sides,
        )
        runner = web.AppRunner(
            _application(control, handlers, config, listener),
            access_log=None,
            logger=listener.logger,
            shutdown_timeout=_SHUTDOWN_S,
            lingering_time=_LINGERING_S,
            auto_decompress=False,  # four megabytes may unpack to four gigabytes, on the event loop
        )
        kinds = Kinds(
            [
                resync.kind(control),
                restore_job.kind(control, granting),
                *protection_jobs.kinds(control, sides),
                rebind_job.kind(control, sides),
            ]
        )
        # Of a file no other process has the lock.
        driver = Runner(
            db,
            kinds,
            config.name,
            control.now_ns,
            alone=config.database.is_file,
            ended=control.bell.ring,
            hindrance=control.force.hindrance,
        )
        janitor = Janitor(db, kinds, control.now_ns)
        await runner.setup()
        try:
            if runner.server is None:
                raise RuntimeError("the runner was set up, so it has a server")
            parts: tuple[_Part, ...] = (
                _Part("listener", listener.run(runner.server)),
                _Part("sweeper", _sweep(control, sides, own, stop), ends_itself=True),
                _Part("jobs", _drive_jobs(control, driver, stop), ends_itself=True),
                _Part("what jobs undid", _tidy_jobs(control, driver, janitor, stop)),
                _Part("in force", _watch_force(control, pointing)),
                _Part("control state", _keep_state(control, keeping)),
                _Part("gaps", _watch_for_gaps(control)),
                _Part("vault", _watch_vault(control, vault)),
                _Part("serving", _ask_whose(control, stop)),
                _Part("revocations", _make_up_for_revocations(control, revoking)),
                _Part("grants", _sweep_grants(control, granting, stop)),
                _Part("deletions", _sweep_deletions(control, deletions, stop)),
                _Part("delays of deletions", _count_deletions(control, deletions, stop)),
            )
            if others is not None:
                parts += (
                    _Part("replicas: told", _tell_others(control, others)),
                    _Part("replicas: heard", _hear_others(control, others, revoking)),
                )
            async with asyncio.TaskGroup() as tasks:
                begun = [(part, tasks.create_task(part.work, name=part.name)) for part in parts]
                _log.info("listening", host=config.listen, port=listener.port, name=config.name)
                service.notify("READY=1")
                ready(listener.port)
                await stop.wait()
                for part, task in begun:
                    if not part.ends_itself:
                        task.cancel()
        finally:
            control.bell.close()  # held answers go out, so that their connections can close
            await runner.cleanup()
            if others is not None:
                await others.leave()
    finally:
        await storage.close()
        await db.close()


def _application(
    control: Control, handlers: Handlers, config: ConfigServerConfig, listener: Listener
) -> web.Application:
    known = KnownOperators(control.db, control.now_ns)

    async def operator_of(token: str) -> Operator | None:
        name = await known.name(token)
        return None if name is None else Operator(name, ALL)

    binder = Binder(
        operator_of,
        lambda *certificate: control.revoked.covers(*certificate),
        listener.asked,
        lambda: control.force.error,
    )
    routes.bind(binder, config.name, handlers)
    return binder.application()


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise ConfigError(f"The data folder {folder} could not be made", cause=str(exc)) from exc


def _token(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


async def _recover(control: Control, folder: Path) -> None:
    """Bring back what was known before the last stop; make an operator token when there is none."""
    for stored in await control.db.run(inventory.reports):
        try:
            mono_ns = control.mono_ns()
            age_ns = stored.age_ns if control.db.is_shared else None
            heard_ns = mono_ns - max(0, control.now_ns() - stored.received_ns if age_ns is None else age_ns)
            control.presence.learn(
                stored.role,
                stored.name,
                stored.report,
                stored.received_ns,
                heard_ns,
                mono_ns,
                stored.address,
            )
        except RequestError as exc:
            # Stored by another version of this program; the daemon's next report replaces it.
            _log.warning("a stored report was dropped", role=stored.role, name=stored.name, cause=exc.cause)
    known = {machine.name for machine in await control.db.run(inventory.machines)}
    kept = await control.db.run(lasting_record.load)
    control.lasting.recover({name: kept[name] for name in kept if name in known}, control.mono_ns())
    await first_operator.ensure(control.db, folder, control.now_ns())


async def _begin_in_force(
    control: Control, config: ConfigServerConfig, file: FileVault | None
) -> Keeping | None:
    """Whether this server is the one, before anybody is answered; and what keeps its state, where there are storage and vault."""
    storage = control.storage
    if file is None or not storage.place:
        lacks = "no storage ([blob])" if file is not None else "no vault (vault_file)"
        _log.info("the control state is not kept in storage: the configuration names " + lacks)
        return None
    host = socket.gethostname()
    known_as = next((name for name in config.hosts if name != host), "")
    shown = f"{host} ({known_as})" if known_as else host
    control.force = Force(control.db, storage.machines, shown, file.fingerprints)
    control.watched.append(lambda: control.force.error)
    await control.force.start()
    return Keeping(control.db, config, file, control.force, lambda: storage.machines().vault)


async def _watch_force(control: Control, pointing: Pointing) -> None:
    """Never returns while there is storage to ask."""
    while not control.force.is_alone:
        await _part(control, "in force", control.force.watch())
        await _part(control, "pointer", _point(control, pointing))
        await asyncio.sleep(FORCE_S)


async def _point(control: Control, pointing: Pointing) -> None:
    with contextlib.suppress(TransientError):  # who reads storage all the time says so
        await pointing.look(control.storage.machines().vault)


async def _keep_state(control: Control, keeping: Keeping | None) -> None:
    """Never returns while there is where to keep it."""
    if keeping is None:
        return
    control.watched.append(lambda: keeping.error)
    while True:
        await _part(control, "control state", keeping.look())
        await asyncio.sleep(KEEP_S)


async def _recorded(file: FileVault, storage: Storage, control: Control) -> RecordedVault:
    place = storage.place
    if not place:
        return RecordedVault(file, None)
    return RecordedVault(
        file,
        storage.machines,
        await control.db.run(lambda db: keys.remembered(db, place)),
        lambda recorded: control.db.run(lambda db: keys.remember(db, place, recorded)),
    )


async def _watch_vault(control: Control, vault: RecordedVault | None) -> None:
    """Compares the vault file with storage, at the start and again: this server starts and works without storage. Never returns while
    there is one."""
    if vault is None:
        return

    control.watched.append(lambda: vault.problem)
    while True:
        await _part(control, "vault", vault.check())
        await asyncio.sleep(_VAULT_S if vault.problem is None else _VAULT_WRONG_S)


async def _sweep(control: Control, sides: Sides, own: OwnCertificate, stop: asyncio.Event) -> None:
    """Every few seconds: problems that nobody reports of himself, jobs that were left, the own
    certificate. Whatever one of these meets hinders neither the others nor those who report and ask: it is logged, and where it
    was unthought of (or words about it can be stored at all) an event; the next sweep tries again."""
    while not stop.is_set():
        await _part(control, "sweep", _sweep_once(control, sides))
        await _part(control, "own certificate", own.renew())
        known = control.presence.all()
        wrong = "".join(f"; {problem.what}: {problem.cause}" for problem in control.own_problems())
        service.notify(f"WATCHDOG=1\nSTATUS={len(known)} daemons known{wrong}")
        await wait_for(stop, _SWEEP_S)


async def _drive_jobs(control: Control, driver: Runner, stop: asyncio.Event) -> None:
    while not stop.is_set():
        rung = control.bell.listen(DRIVEN)
        await _part(control, "jobs", driver.look())
        await wait_for(rung, _BEAT_S)
    await driver.stop()


async def _tidy_jobs(control: Control, driver: Runner, janitor: Janitor, stop: asyncio.Event) -> None:
    """Apart, since it waits for clouds, and a cancel does not wait for that."""
    while not stop.is_set():
        await _part(control, "jobs that nobody drives", driver.tidy())
        if not await control.force.hindrance():
            await _part(control, "what jobs undid", _if_its(control, "janitor", 3 * _TIDY_S, janitor.look))
        await wait_for(stop, _TIDY_S)


async def _if_its(control: Control, what: str, for_s: float, work: Callable[[], Awaitable[None]]) -> bool:
    """Of several config servers one does it; whether it was this one."""
    if not await control.is_its(what, for_s):
        return False
    await work()
    return True


async def _tell_others(control: Control, others: Replicas) -> None:
    while True:
        await others.due()
        await _part(control, "replicas: told", others.write())


async def _hear_others(control: Control, others: Replicas, revoking: Revoking) -> None:
    """And who was revoked there: it is rung, but a server may be killed before it has rung."""
    asked_ns = control.mono_ns()
    while True:
        await asyncio.sleep(BEAT_S)
        await _part(control, "replicas: heard", others.look())
        if control.mono_ns() - asked_ns > _SWEEP_S * SECOND_NS:
            await revoking.take()
            asked_ns = control.mono_ns()


async def _watch_for_gaps(control: Control) -> None:
    """Of this server's own: its host was suspended, or something held it up. Apart from the sweep, which waits for storage."""
    before_ns = control.mono_ns()
    while True:
        control.stillness.beat(before_ns)
        await asyncio.sleep(_BEAT_S)
        now_ns = control.mono_ns()
        if now_ns - before_ns > _GAP_S * SECOND_NS:
            _log.warning("this server stood still", seconds=(now_ns - before_ns) / SECOND_NS)
            control.presence.excuse(before_ns, now_ns)
        before_ns = now_ns


async def _ask_whose(control: Control, stop: asyncio.Event) -> None:
    """Of machines that several process servers claim; apart, since it waits for storage."""
    while not stop.is_set():
        await _part(control, "serving", control.serving.ask())
        await wait_for(stop, _SWEEP_S)


async def _make_up_for_revocations(control: Control, revoking: Revoking) -> None:
    while True:
        await revoking.due()
        if control.force.by is not None:  # what it has to say, the other has heard, or will never
            await asyncio.sleep(_AGAIN_S)
            continue
        await _part(control, "revocations", revoking.make_up())


async def _sweep_grants(control: Control, granting: Granting, stop: asyncio.Event) -> None:
    """At the start, since the database may be from a backup, and then now and then. It waits for storage, so it is apart."""
    away = False

    async def sweep() -> None:
        nonlocal away
        away = False
        try:
            away = not await _if_its(control, _GRANTS, 1.5 * SWEEP_S, granting.sweep)
        except TransientError as exc:  # who reads storage all the time tells it
            _log.info("grants not looked through", **exc.as_dict())
            away = True

    while not stop.is_set():
        await _part(control, _GRANTS, sweep())
        await wait_for(stop, _AGAIN_S if away or _GRANTS in control.troubles else SWEEP_S)


async def _sweep_deletions(control: Control, deletions: DeletionSweep, stop: asyncio.Event) -> None:
    """It waits for storage, so it is apart."""
    while not stop.is_set():
        await _part(control, "deletions", deletions.sweep())
        await wait_for(stop, PASS_S)


async def _count_deletions(control: Control, deletions: DeletionSweep, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await _part(control, "delays of deletions", deletions.count())
        await wait_for(stop, PASS_S)


async def _part(control: Control, what: str, work: Awaitable[object]) -> None:
    """Do `work`. Why it failed is a problem of this server's own until it works again."""
    try:
        await work
    except DataFolderInUseError:
        raise  # what this server remembers is not all that was said: it ends, and begins anew
    except DatabaseError:
        pass  # it says so itself. Who reports or asks is answered as well as it goes; the next sweep tries again
    except Exception as exc:  # noqa: BLE001 - the outermost frame of what nobody waits for
        if not isinstance(exc, _THOUGHT_OF) and what not in control.troubles:
            _log.error("this is a bug", what=what, exc_info=exc)
        control.note(what, _explained(f"What the config server does by itself ({what}) failed", exc))
    else:
        control.note(what, None)


def _explained(what: str, exc: Exception) -> UnderstudyError:
    if isinstance(exc, UnderstudyError):
        return exc
    thought_of = isinstance(exc, _THOUGHT_OF)  # a full disk, say
    return LookFailedError(
        what, cause=str(exc) if thought_of else f"an error inside the config server: {type(exc).__name__}"
    )


async def _sweep_once(control: Control, sides: Sides) -> None:
    known = await control.db.run(inventory.machines)
    last_points = await _last_points(control, known)
    now_ns, mono_ns = control.now_ns(), control.mono_ns()

    more = control.others.more_problems() if control.others is not None else ()
    problems = [*more, *sides.problems(), *control.presence.twins(mono_ns), *control.own_problems()]
    for machine in known:
        problems += _judged(control, machine, last_points.get(machine.name), mono_ns)

    kept = control.lasting.kept() if mono_ns - control.lasting_saved_ns > _LASTING_NS else None

    def work(db: Connection) -> tuple[jobs.Heard, list[EventView], list[str]]:
        heard = jobs.heard(db, control.job_heard, mono_ns)
        if not control.holds(db, "sweep", _LEASE_S):
            return heard, [], []  # another server has the sweep; this one has looked, and can go on with it
        if kept is not None:
            lasting_record.save(db, kept)
        standing = [problem_of(job) for job in jobs.that_need_attention(db)]
        changed = events.reconcile(db, SELF, [*problems, *standing], now_ns)
        for job in jobs.fail_silent(db, heard, mono_ns, now_ns):
            note_ended(db, job, SELF, now_ns)
        events.trim(db, now_ns)
        if control.others is not None:
            replicas.bury(db)
        return heard, changed, commands.expire(db, now_ns)

    control.job_heard, changed, expired = await control.db.run(work)
    if kept is not None:
        control.lasting_saved_ns = mono_ns
    log_changes(changed)
    for id_ in expired:
        control.bell.ring(id_)


def _judged(control: Control, machine: Machine, last_point: PointView | None, mono_ns: int) -> list[Problem]:
    """Each machine for itself: what cannot be judged of one is a problem of that one."""
    try:
        return list(wrong.derived_problems(machine, control.facts(machine, last_point), mono_ns))
    except Exception as exc:  # noqa: BLE001 - whatever its daemons reported
        error = _explained(f"The state of {machine.name} could not be judged", exc)
        _log.error("machine not judged", exc_info=exc, **error.as_dict())
        return [Problem(**error.as_dict(), object=machine.name)]


async def _last_points(control: Control, machines: Sequence[Machine]) -> dict[str, PointView | None]:
    """The newest points of the machines that replicate, or should, and whose daemons do not know what storage holds: for the others it
    is not asked."""
    mono_ns = control.mono_ns()
    known = ((machine, facts_of(control.presence, machine.name, mono_ns)) for machine in machines)
    silent = [
        machine.name
        for machine, facts in known
        if (machine.protected or replicates(machine, facts, mono_ns)) and not reported_ns(facts)
    ]
    found = await asyncio.gather(*(control.storage.last_point(name) for name in silent))
    return dict(zip(silent, found, strict=True))
