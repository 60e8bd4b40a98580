"""`understudy point …`: recovery points."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from config_server.cli import rescue
from config_server.cli.machine_commands import fetch
from config_server.cli.names import name_argument
from config_server.cli.options import COMMON, Target, add_options, find_target
from config_server.cli.output import Progress, emit, going_on, grid, line, run, say, size
from shared.errors import (
    DeadlineError,
    DisconnectedError,
    IntegrityError,
    PeerError,
    PointNotFoundError,
    StorageError,
    UnderstudyError,
    UnreachableError,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from config_server.cli.access import Access
    from config_server.cli.profile import Rescue
    from shared.api.commands import CommandView
    from shared.api.points import PointList, PointView
    from shared.blob import BlobConfig
    from shared.control.rest import RestClient

_T = TypeVar("_T")
_POLL_S: Final = 0.5
_FIRST_S: Final = 10.0
"""How long a config server or an agent that is away is waited for before anything was asked."""


@click.group()
@add_options(*COMMON)
def point() -> None:
    """Recovery points: list, create, verify."""


@point.command("list")
@name_argument
@add_options(*rescue.OPTIONS)
@add_options(*COMMON)
def list_(name: str, **storage: Any) -> None:
    """The points of a machine, oldest first; the table also shows periods without any. With --blob-url from storage alone."""
    config = rescue.storage_of(**storage)
    found = run(_list_stored(config, name) if config is not None else _list(find_target(), name))
    emit(found.points, lambda: _page(found, is_stored=config is not None))


@point.command()
@name_argument
@click.option("--wait", is_flag=True, help="Wait until the point can be restored, and print it.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), default=120.0, show_default=True, metavar="S"
)
@add_options(*COMMON)
def create(name: str, wait: bool, timeout_s: float) -> None:
    """Make a point of now: everything that had completed before this command is in it."""
    if not wait:
        asked = run(_ask(name))
        emit(asked, lambda: grid(None, ("command", "state"), [(asked.id, asked.state)]))
        return
    made = run(_create(name, timeout_s))
    emit(made, lambda: _table_of([made]))


@point.command()
@name_argument
@click.argument("points", nargs=-1, metavar="[POINT]...")
@click.option("--all", "every", is_flag=True, help="All points of the machine.")
@add_options(*rescue.OPTIONS)
@add_options(*COMMON)
def verify(name: str, points: tuple[str, ...], every: bool, **storage: Any) -> None:
    """Read and open the log that a restore of POINT needs (default: latest), without writing anything. Snapshots of
    seed disks are looked up, not read: that would take as long as the restore."""
    found = run(_verify(rescue.find(**storage), name, points, every))
    done = [one for one in found if one["verified"]]
    emit(
        found,
        lambda: grid(
            "Verified: the log was read and opened; snapshots were looked up, not read",
            ("=point", "=time", "=base", ">segments", ">batches", ">log"),
            [
                (
                    v["id"],
                    v["time"],
                    v["base"] or "-",
                    str(v["segments"]),
                    str(v["batches"]),
                    size(v["log_b"]),
                )
                for v in done
            ],
        ),
    )
    if len(done) < len(found):
        bad = ", ".join(one["id"] for one in found if not one["verified"])
        raise IntegrityError(
            f"{len(found) - len(done)} of {len(found)} points of machine '{name}' cannot be restored",
            cause=bad,
            action="The others can. What is wrong with each is said above.",
        )


async def _list(target: Target, name: str) -> PointList:
    from shared import api
    from shared.api.route import Nothing

    async with target.connect() as client:
        try:
            return await client.call(api.POINTS, Nothing(), machine=name)
        except UnderstudyError as exc:
            if target.rescue is None or rescue.is_of_the_user(exc):
                raise
            trouble = exc
    say(f"The config server is of no help ({trouble.cause or trouble.what}): reading storage itself.")
    return await _list_stored(target.rescue.blob, name)


async def _list_stored(config: BlobConfig, name: str) -> PointList:
    from shared.machine.storage import MachineStorage
    from shared.recovery import listing

    async with MachineStorage.connect(config) as storage:
        return await listing.read(storage, name)


async def _ask(name: str) -> CommandView:
    async with find_target().connect() as client:
        return await _request(client, name, secrets.token_hex(8))


async def _request(client: RestClient, name: str, id_: str) -> CommandView:
    from shared import api
    from shared.api.points import PointRequest

    return await client.call(api.POINT_CREATE, PointRequest(id=id_), machine=name)


async def _create(name: str, timeout_s: float) -> PointView:
    """Ask for a mark, wait until the agent has placed it, then until storage has the point.

    A config server, agent or storage that is away for a moment is waited for: the request's id makes it the
    same one.
    """
    from shared import api
    from shared.api.commands import CommandState
    from shared.api.route import Failure, Nothing
    from shared.control.rest import error_of

    began = time.monotonic()
    deadline = began + timeout_s
    id_ = secrets.token_hex(8)
    async with find_target().connect() as client:
        with going_on(_asked_for(name)), Progress() as progress:
            patient = _Patience(progress)
            await patient.call(lambda: _request(client, name, id_), min(deadline, began + _FIRST_S))
            while True:
                wait_s = max(0.0, min(2.0, deadline - time.monotonic()))
                placed = await patient.call(
                    lambda wait_s=wait_s: client.call(api.COMMAND, Nothing(), wait_s=wait_s, id=id_),  # type: ignore[misc]
                    deadline,
                )
                if placed.state == CommandState.FAILED:
                    raise error_of(Failure(exit_code=5, **placed.result["error"]))
                if placed.state == CommandState.DONE:
                    break
                if time.monotonic() >= deadline:
                    raise await _too_late(client, name, timeout_s, "the agent has not placed it")
                progress.show(f"{name}: waiting for the agent to place the point")
            position = f"{placed.result['epoch']}-{placed.result['batch']}"
            while True:
                listed = await patient.call(
                    lambda: client.call(api.POINTS, Nothing(), machine=name), deadline
                )
                for found in reversed(listed.points):
                    if (
                        id_ in found.marks
                    ):  # not by position: a batch that gets lost takes its number with it, not its mark
                        return found
                if time.monotonic() >= deadline:
                    raise await _too_late(
                        client, name, timeout_s, f"its position {position} has not reached blob storage"
                    )
                progress.show(f"{name}: point {position} is on its way to blob storage")
                await asyncio.sleep(_POLL_S)


def _asked_for(name: str) -> str:
    return f"The point may have been asked for already, and then is made without this command: understudy point list {name}."


class _Patience:
    """Repeats a call while what it needs is away, and says what that is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    async def call(self, work: Callable[[], Awaitable[_T]], deadline: float) -> _T:
        """The result of `work`; its last error when `deadline` (monotonic) has passed."""
        while True:
            try:
                return await work()
            except (UnreachableError, DisconnectedError, StorageError) as exc:
                if time.monotonic() >= deadline:
                    raise
                self._progress.show(f"waiting: {exc.what}: {exc.cause}")
                await asyncio.sleep(_POLL_S)


async def _too_late(client: RestClient, name: str, timeout_s: float, why: str) -> DeadlineError:
    try:
        shown = await fetch(client, name)
    except PeerError as exc:
        return DeadlineError(f"No point of '{name}' was made within {timeout_s:g} s", cause=f"{why}; {exc}")
    errors = "; ".join(f"{error.code} {error.what}" for error in shown.errors)
    return DeadlineError(
        f"No point of '{name}' was made within {timeout_s:g} s",
        cause=f"{why}; the machine is {shown.state}" + (f": {errors}" if errors else ""),
        action=f"See `understudy machine show {name}`; the point may still come: understudy point list {name}.",
    )


async def _verify(
    target: Target | Rescue, name: str, references: tuple[str, ...], every: bool
) -> list[dict[str, Any]]:
    from config_server.cli.access import opened
    from shared.api.restores import RestoreRequest

    async with opened(
        target, name, RestoreRequest(point="verify", host=socket.gethostname(), dry_run=True)
    ) as access:
        return await _verify_with(access, name, references, every)


async def _verify_with(
    access: Access, name: str, references: tuple[str, ...], every: bool
) -> list[dict[str, Any]]:
    from shared.recovery.catalog import Catalog
    from shared.recovery.position import format_ns
    from shared.recovery.references import resolve
    from shared.recovery.verify import verify as verify_point

    catalog = await Catalog.load(access.store, name)
    wanted = [doc.id for doc in catalog.restorable()] if every else list(references or ("latest",))
    if not wanted:
        raise PointNotFoundError(f"Machine '{name}' has no points to verify")
    done = []
    with Progress() as progress:
        for number, reference in enumerate(wanted, 1):
            progress.show(f"verifying {reference} ({number} of {len(wanted)})")
            try:
                position = await resolve(catalog, reference)
                found = await verify_point(access.store, access.vault, catalog, position)
            except (
                IntegrityError,
                PointNotFoundError,
            ) as exc:  # of this point: the others have their own answers
                if len(wanted) == 1:
                    raise
                done.append({"machine": name, "id": reference, "verified": False, "error": exc.as_dict()})
                say(f"Point {reference} cannot be restored: {exc}")
                continue
            time_ = format_ns(found.time_ns)
            done.append(
                {**msgspec.to_builtins(found), "time": time_, "verified": True, "snapshots_read": False}
            )
    return done


def _page(found: PointList, *, is_stored: bool) -> RenderableType:
    """`is_stored`: no server was asked."""
    gaps = "\n".join(
        f"no points between {gap.since_time or 'the beginning'} and {gap.until_time or 'now'}: {gap.cause}"
        for gap in found.gaps
    )
    if found.points:
        table = _table_of(found.points)
        table.caption = gaps or None
        return table
    own = f"understudy machine show {found.machine}"
    where = "understudy machine list, with the same options" if is_stored else own
    return line(f"{found.machine} has no points. What there is of it: {where}", f"\n{gaps}" if gaps else "")


def _table_of(points: list[PointView]) -> Table:
    rows = []
    for point_ in points:
        remarks = []
        if point_.lost:
            remarks.append(f"cannot be restored: {point_.lost}")
        if point_.remark:
            remarks.append(point_.remark)
        if point_.suspect:
            remarks.append("suspect: capture missed writes before it")
        if point_.unreadable:
            from shared.recovery.unreadable import Unreadable

            ranges = tuple((disk, first, sectors) for disk, first, sectors in point_.unreadable)
            remarks.append(str(Unreadable(ranges, point_.unreadable_covers)))
        rows.append((point_.id, point_.time, point_.consistency, point_.state, "; ".join(remarks)))
    return grid(None, ("=point", "=time", "consistency", "state", "remarks"), rows)
