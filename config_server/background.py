"""What the config server does by itself, each part beside the others until the stop: none holds up another, nor who reports and asks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NamedTuple

from config_server import sweep
from config_server.identity.own_certificate import OwnCertificate
from config_server.jobs.janitor import Janitor
from config_server.jobs.runner import Runner
from config_server.operations.ca_following import Following
from config_server.operations.control import Control
from config_server.operations.deletion_sweep import PASS_S, DeletionSweep
from config_server.operations.granting import SWEEP_S, Granting
from config_server.operations.jobs import DRIVEN, Jobs
from config_server.operations.replicas import BEAT_S, Replicas
from config_server.operations.revoking import Revoking
from config_server.operations.sides import Sides
from config_server.recovery.generation import LOOK_S as FORCE_S
from config_server.recovery.keeping import LOOK_S as KEEP_S
from config_server.recovery.keeping import Keeping
from config_server.recovery.pointing import Pointing
from config_server.rules.clock import SECOND_NS
from config_server.rules.twins import SILENT_S
from shared.daemon import logging, service
from shared.errors import (
    DatabaseError,
    DataFolderInUseError,
    TransientError,
)
from shared.keys.vault_record import RecordedVault
from shared.waiting import wait_for

_log = logging.get()

_SWEEP_S: Final = 5.0
_BEAT_S: Final = 1.0
_CA_S: Final = 2.0
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


class Part(NamedTuple):
    """What runs beside the others until the stop."""

    name: str
    work: Coroutine[Any, Any, None]
    ends_itself: bool = False
    """It looks at `stop`, and what it has begun is done first. Others wait, for storage or for ever, and are cancelled."""


async def watch_force(control: Control, pointing: Pointing) -> None:
    """Never returns while there is storage to ask."""
    while not control.force.is_alone:
        await _part(control, "in force", control.force.watch())
        await _part(control, "pointer", _point(control, pointing))
        await asyncio.sleep(FORCE_S)


async def _point(control: Control, pointing: Pointing) -> None:
    with contextlib.suppress(TransientError):  # who reads storage all the time says so
        await pointing.look(control.storage.machines().vault)
        control.elsewhere = pointing.elsewhere


async def keep_state(control: Control, keeping: Keeping | None) -> None:
    """Never returns while there is where to keep it."""
    if keeping is None:
        return
    control.watched.append(lambda: keeping.error)
    while True:
        await _part(control, "control state", keeping.look())
        await asyncio.sleep(KEEP_S)


async def watch_vault(control: Control, vault: RecordedVault | None) -> None:
    """Compares the vault file with storage, at the start and again: this server starts and works without storage. Never returns while
    there is one."""
    if vault is None:
        return

    control.watched.append(lambda: vault.problem)
    while True:
        await _part(control, "vault", vault.check())
        await asyncio.sleep(_VAULT_S if vault.problem is None else _VAULT_WRONG_S)


async def sweep_machines(
    control: Control, sides: Sides, jobs: Jobs, own: OwnCertificate, stop: asyncio.Event
) -> None:
    """Every few seconds: problems that nobody reports of himself, jobs that were left, the own
    certificate. Whatever one of these meets hinders neither the others nor those who report and ask: it is logged, and where it
    was unthought of (or words about it can be stored at all) an event; the next sweep tries again."""
    while not stop.is_set():
        await _part(control, "sweep", sweep.once(control, sides, jobs))
        await _part(control, "own certificate", own.renew())
        known = control.presence.all()
        wrong = "".join(f"; {problem.what}: {problem.cause}" for problem in control.own_problems())
        service.notify(f"WATCHDOG=1\nSTATUS={len(known)} daemons known{wrong}")
        await wait_for(stop, _SWEEP_S)


async def drive_jobs(control: Control, driver: Runner, stop: asyncio.Event) -> None:
    while not stop.is_set():
        rung = control.bell.listen(DRIVEN)
        await _part(control, "jobs", driver.look())
        await wait_for(rung, _BEAT_S)
    await driver.stop()


async def tidy_jobs(control: Control, driver: Runner, janitor: Janitor, stop: asyncio.Event) -> None:
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


async def tell_others(control: Control, others: Replicas) -> None:
    while True:
        await others.due()
        await _part(control, "replicas: told", others.write())


async def hear_others(control: Control, others: Replicas, revoking: Revoking) -> None:
    """And who was revoked there: it is rung, but a server may be killed before it has rung."""
    asked_ns = control.mono_ns()
    while True:
        await asyncio.sleep(BEAT_S)
        await _part(control, "replicas: heard", others.look())
        if control.mono_ns() - asked_ns > _SWEEP_S * SECOND_NS:
            await revoking.take()
            asked_ns = control.mono_ns()


async def follow_once(control: Control, following: Following) -> None:
    await _part(control, "CA", following.look())


async def follow_renewal(control: Control, following: Following) -> None:
    """This server's files of the CA, while that is renewed; and by whom daemons accept their peers. Never returns."""
    while True:
        await asyncio.sleep(_CA_S)
        await follow_once(control, following)


async def watch_for_gaps(control: Control) -> None:
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


async def ask_whose(control: Control, stop: asyncio.Event) -> None:
    """Of machines that several process servers claim; apart, since it waits for storage."""
    while not stop.is_set():
        await _part(control, "serving", control.serving.ask())
        await wait_for(stop, _SWEEP_S)


async def make_up_for_revocations(control: Control, revoking: Revoking) -> None:
    while True:
        await revoking.due()
        if control.force.by is not None:  # what it has to say, the other has heard, or will never
            await asyncio.sleep(_AGAIN_S)
            continue
        await _part(control, "revocations", revoking.make_up())


async def sweep_grants(control: Control, granting: Granting, stop: asyncio.Event) -> None:
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


async def sweep_deletions(control: Control, deletions: DeletionSweep, stop: asyncio.Event) -> None:
    """It waits for storage, so it is apart."""
    while not stop.is_set():
        await _part(control, "deletions", deletions.sweep())
        await wait_for(stop, PASS_S)


async def count_deletions(control: Control, deletions: DeletionSweep, stop: asyncio.Event) -> None:
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
        if not isinstance(exc, sweep.THOUGHT_OF) and what not in control.troubles:
            _log.error("this is a bug", what=what, exc_info=exc)
        control.note(what, sweep.explained(f"What the config server does by itself ({what}) failed", exc))
    else:
        control.note(what, None)
