"""Wiring of the config server: files → database and CA → port → READY; beside it what it does by itself (background.py)."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from config_server import background
from config_server.config import ConfigServerConfig
from config_server.data_folder import belonging, first_operator, lock
from config_server.data_folder.restoring import remove_new
from config_server.identity import ca_note
from config_server.identity.ca import CertificateAuthority
from config_server.identity.own_certificate import OwnCertificate
from config_server.jobs.janitor import Janitor
from config_server.jobs.kinds import Kinds
from config_server.jobs.runner import Runner
from config_server.operations import (
    ca_renewal,
    deletion_job,
    keys,
    protection_jobs,
    rebind_job,
    restore_job,
    resync,
)
from config_server.operations.ca_following import Following
from config_server.operations.ca_renewal import CaRenewals
from config_server.operations.call import Operator
from config_server.operations.control import Control
from config_server.operations.deleting import Deleting
from config_server.operations.deletion_sweep import DeletionSweep
from config_server.operations.enrolment import Identity
from config_server.operations.granting import Granting
from config_server.operations.jobs import DRIVEN, Jobs
from config_server.operations.keys import Keys
from config_server.operations.known_operators import KnownOperators
from config_server.operations.machines import Machines
from config_server.operations.operators import Operators
from config_server.operations.points import Points
from config_server.operations.policies import PolicyOperations
from config_server.operations.protecting import Protecting
from config_server.operations.replicas import Replicas
from config_server.operations.reporting import Reporting
from config_server.operations.restores import Restores
from config_server.operations.revoking import Revoking
from config_server.operations.sides import Sides
from config_server.recovery.generation import Force
from config_server.recovery.keeping import Keeping
from config_server.recovery.pointing import Pointing
from config_server.storage.account import Storage
from config_server.store import ca as stored_ca
from config_server.store import inventory, lasting_record
from config_server.store.database import Database
from config_server.store.files import DATABASE_FILE
from config_server.web import routes
from config_server.web.binding import Binder
from config_server.web.listener import Listener
from config_server.web.routes import Handlers
from shared.api.permissions import ALL
from shared.daemon import logging, service
from shared.errors import (
    ConfigError,
    RequestError,
    UnderstudyError,
    VaultMisfitError,
)
from shared.host import durable
from shared.keys.vault import FileVault
from shared.keys.vault_record import RecordedVault

_log = logging.get()

OPERATOR: Final = belonging.OPERATOR
TOKEN_FILE: Final = belonging.TOKEN_FILE
_SHUTDOWN_S: Final = 3.0
_LINGERING_S: Final = 1.0
"""So long a refused request's body is read on, so that its sender can read the answer."""


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
    ca_note.check_there(folder, config.vault_file, has_database=config.database.is_file)
    with durable.named(f"The data folder {folder} could not be used"):
        remove_new(folder)
        ca = CertificateAuthority.open(folder)
        if config.database.is_file:
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
    following = Following(control, config.name, folder, config.vault_file, own)
    granting = Granting(control, config.grant_hours)
    try:
        with durable.named(f"The data folder {folder} could not be used"):
            if not config.database.is_file:
                ca_note.check_same(folder, ca, config.vault_file, await db.run(stored_ca.former))
            is_noted = ca_note.is_of_this(ca, config.vault_file)
            await db.run(
                lambda opened: belonging.check_parts(
                    opened, ca, _token(folder / TOKEN_FILE), is_noted=is_noted
                )
            )
            await db.run(lambda opened: belonging.check_beside(opened, _token(folder / TOKEN_FILE)))
            await _recover(control, folder)
            ca_note.note_if_possible(ca, config.vault_file)
            await revoking.recover()
            await known.recover()
            await background.follow_once(control, following)
            if others is not None:
                await others.join()
            vault = None if file is None else await _recorded(file, storage, control)
            keeping = await _begin_in_force(control, config, vault)
            control.kept_ns = None if keeping is None else keeping.kept_ns
            pointing = Pointing(config, ca, control.force)
        listener = Listener.open(config.listen, config.port, own.context)
        protecting = Protecting(control, sides)
        deletions = DeletionSweep(control, sides, revoking)
        deleting = Deleting(control, protecting)
        kinds = Kinds(
            [
                resync.kind(control),
                restore_job.kind(control, granting),
                *protection_jobs.kinds(control, sides),
                rebind_job.kind(control, sides),
                deletion_job.kind(control, deleting.cancel),
                ca_renewal.kind(control, following),
            ]
        )
        jobs = Jobs(control, kinds)
        handlers = Handlers(
            identity=known,
            revoking=revoking,
            reporting=Reporting(control, sides),
            machines=Machines(control),
            points=Points(control),
            restores=Restores(control, granting),
            jobs=jobs,
            protecting=protecting,
            deleting=deleting,
            policies=PolicyOperations(control),
            granting=granting,
            keys=Keys(control, vault),
            operators=Operators(control),
            renewals=CaRenewals(control),
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
            parts: tuple[background.Part, ...] = (
                background.Part("listener", listener.run(runner.server)),
                background.Part(
                    "sweeper", background.sweep_machines(control, sides, jobs, own, stop), ends_itself=True
                ),
                background.Part("jobs", background.drive_jobs(control, driver, stop), ends_itself=True),
                background.Part("what jobs undid", background.tidy_jobs(control, driver, janitor, stop)),
                background.Part("in force", background.watch_force(control, pointing)),
                background.Part("control state", background.keep_state(control, keeping)),
                background.Part("CA", background.follow_renewal(control, following)),
                background.Part("gaps", background.watch_for_gaps(control)),
                background.Part("vault", background.watch_vault(control, vault)),
                background.Part("serving", background.ask_whose(control, stop)),
                background.Part("revocations", background.make_up_for_revocations(control, revoking)),
                background.Part("grants", background.sweep_grants(control, granting, stop)),
                background.Part("deletions", background.sweep_deletions(control, deletions, stop)),
                background.Part("delays of deletions", background.count_deletions(control, deletions, stop)),
            )
            if others is not None:
                parts += (
                    background.Part("replicas: told", background.tell_others(control, others)),
                    background.Part("replicas: heard", background.hear_others(control, others, revoking)),
                )
            async with asyncio.TaskGroup() as tasks:
                begun = [(part, tasks.create_task(part.work, name=part.name)) for part in parts]
                _log.info("listening", host=config.listen, port=listener.port, name=config.name)
                service.notify("READY=1")
                ready(listener.port)
                await stop.wait()
                control.bell.ring_here(DRIVEN)  # so that who drives jobs looks at the stop
                for part, task in begun:
                    if not part.ends_itself:
                        task.cancel()
        finally:
            control.bell.close()  # held answers go out, so that their connections can close
            await runner.cleanup()
            if keeping is not None:
                await keeping.last()
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
        lambda: control.force.current(),
    )
    routes.bind(binder, config.name, handlers, control)
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
    control: Control, config: ConfigServerConfig, vault: RecordedVault | None
) -> Keeping | None:
    """Whether this server is the one, before anybody is answered; and what keeps its state, where there are storage and vault."""
    storage = control.storage
    if vault is None or not storage.place:
        lacks = "no storage ([blob])" if vault is not None else "no vault (vault_file)"
        _log.info("the control state is not kept in storage: the configuration names " + lacks)
        return None
    host = socket.gethostname()
    known_as = next((name for name in config.hosts if name != host), "")
    shown = f"{host} ({known_as})" if known_as else host
    control.force = Force(control.db, storage.machines, shown, vault.file.fingerprints)
    control.watched.append(lambda: control.force.error)
    await control.force.start()

    async def misfit() -> UnderstudyError | None:
        await vault.check()
        return vault.problem if isinstance(vault.problem, VaultMisfitError) else None

    return Keeping(
        control.db,
        config,
        vault.file,
        control.force,
        lambda: storage.machines().vault,
        misfit=misfit,
        is_behind=lambda: control.refuses_renewed,
    )


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
