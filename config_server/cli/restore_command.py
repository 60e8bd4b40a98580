"""`understudy restore`: rebuilds a machine's disks from a recovery point.

The command does the work itself, with shared/recovery, straight from blob storage; the config server only
grants access and shows the job. A restore that was interrupted goes on when the same command is run again.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from config_server.cli import rescue
from config_server.cli.names import name_argument
from config_server.cli.options import COMMON, Target, add_options
from config_server.cli.output import Progress, emit, fields, grid, run, say, seconds, size
from shared.errors import RestoreCancelledError, RestoreError, UnderstudyError
from shared.host import protected

if TYPE_CHECKING:
    from rich.table import Table

    from config_server.cli.access import Access
    from config_server.cli.profile import Rescue
    from shared.recovery import materialise as engine
    from shared.recovery.folder import Journal, Manifest
    from shared.recovery.plan import Plan

FLUSH_S: Final = 10.0
_REPORT_S: Final = 1.0
_STAGES: Final = {
    "base": "downloading the snapshot",
    "log": "replaying the log",
    "check": "computing checksums",
}
_WEIGHTS: Final = {"base": (0.0, 0.5), "log": (0.5, 0.4), "check": (0.9, 0.1)}
"""Where each stage begins and how much of the whole it is, for one number of progress."""


@click.command()
@name_argument
@click.option(
    "--point",
    "reference",
    default="latest",
    show_default=True,
    metavar="POINT",
    help="latest, latest-processed, a point's id, or an RFC 3339 time with offset.",
)
@click.option(
    "--to",
    "to_dir",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="An empty folder, or that of the same restore when it was interrupted.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be restored, from what.")
@add_options(*rescue.OPTIONS)
@add_options(*COMMON)
def restore(name: str, reference: str, to_dir: Path, dry_run: bool, **storage: Any) -> None:
    """Write the disks of a machine as sparse images, DIR/<disk id>.raw, with SHA-256 sums in
    manifest.json."""
    protected.check_place(to_dir, "The restore was not begun")
    find = rescue.find(**storage)
    if dry_run:
        plan = run(_plan_only(find, name, reference, to_dir))
        shown = _plan_view(plan, to_dir)
        emit(shown, lambda: _plan_table(shown))
        _check_room(shown["room_b"], plan, to_dir)
        return
    began = time.monotonic()
    manifest = run(_restore(find, name, reference, to_dir.absolute()))
    emit(manifest, lambda: _manifest_table(manifest, to_dir, time.monotonic() - began))


async def _plan_only(find: Target | Rescue, name: str, reference: str, to_dir: Path) -> Plan:
    from config_server.cli.access import opened
    from shared.api.restores import RestoreRequest
    from shared.recovery.folder import check_folder

    reference, journal = _unfinished(to_dir, name, reference)
    request = RestoreRequest(point=reference, to=str(to_dir), host=socket.gethostname(), dry_run=True)
    async with opened(find, name, request) as access:
        plan = await _plan(access, name, reference, journal)
        check_folder(to_dir, plan)
        return plan


async def _restore(find: Target | Rescue, name: str, reference: str, to_dir: Path) -> Manifest:
    from config_server.cli.access import cancelled, opened
    from shared.api.jobs import WorkerState
    from shared.api.restores import RestoreRequest
    from shared.recovery.folder import check_folder
    from shared.recovery.position import parse_rfc3339

    reference, journal = _unfinished(to_dir, name, reference)
    request = RestoreRequest(point=reference, to=str(to_dir), host=socket.gethostname())
    dry = msgspec.structs.replace(request, dry_run=True)
    async with opened(find, name, dry) as looking:
        # Whatever is wrong with the request shall be found before there is a job that failed of it.
        if parse_rfc3339(reference) is not None:  # that time may be what a process server still holds
            await _flush(looking, name)
        plan = await _plan(looking, name, reference, journal)
        check_folder(to_dir, plan)
        access = await looking.begin(request, name)
        try:
            manifest = await _done(access, name, reference, journal, plan, to_dir)
        except RestoreCancelledError:
            await access.tell(WorkerState.CANCELLED, detail="stopped; the same command continues it")
            raise
        except UnderstudyError as exc:
            # Its access may have been taken back before it heard that it was cancelled.
            job = await access.tell(WorkerState.FAILED, error=exc)
            if (told := cancelled(job, name)) is not None:
                raise told from exc
            raise
        except asyncio.CancelledError:
            await access.tell(WorkerState.CANCELLED, detail="interrupted; the same command continues it")
            say("Interrupted: run the same command again, and it goes on where it stopped.")
            raise
        await access.tell(
            WorkerState.DONE, progress=1.0, result={"point": manifest.id, "time": manifest.time}
        )
        return manifest


def _unfinished(to_dir: Path, name: str, reference: str) -> tuple[str, Journal | None]:
    """`latest` moves on; a restore of it that was interrupted goes on with the point that it began with. And what the folder has of it."""
    from shared.recovery.folder import begun

    journal = begun(to_dir)
    if journal is None or journal.origin.machine != name:
        return reference, None
    if reference not in ("latest", "latest-processed"):
        return reference, journal
    say(f"{to_dir} holds an unfinished restore of point {journal.origin.id}: it goes on.")
    return journal.origin.id, journal


async def _flush(access: Access, name: str) -> None:
    answer = await access.flush(name, FLUSH_S)
    if answer is not None and answer.missing:
        say(
            f"Process server {', '.join(answer.missing)} did not upload what it held within {FLUSH_S:.0f} s:"
            " the point may be older than what it has."
        )


async def _plan(access: Access, name: str, reference: str, begun: Journal | None = None) -> Plan:
    from shared.recovery.catalog import Catalog
    from shared.recovery.references import resolve
    from shared.recovery.verify import make_plan

    catalog = await Catalog.load(access.store, name)
    return await make_plan(access.store, catalog, await resolve(catalog, reference), begun)


def _room_b(plan: Plan, to_dir: Path) -> int | None:
    """What the images can take: free space of their file system, and what they have of it; None when it cannot be found out."""
    try:
        place = next(path for path in (to_dir.absolute(), *to_dir.absolute().parents) if path.exists())
        images = [to_dir / f"{disk.name}.raw" for disk in plan.disks]
        held_b = sum(image.stat().st_blocks * 512 for image in images if image.exists())
        return shutil.disk_usage(place).free + held_b
    except OSError:
        return None


def _warn_of_room(plan: Plan, to_dir: Path) -> None:
    room_b = _room_b(plan, to_dir)
    if room_b is not None and room_b < plan.disks_b:
        say(
            f"{to_dir} has room for {size(room_b)}, the disks have {size(plan.disks_b)}: images are sparse and may fit;"
            " if they do not, make room and run the same command again."
        )


def _check_room(room_b: int | None, plan: Plan, to_dir: Path) -> None:
    """Raises RestoreError when the images, full, do not fit."""
    if room_b is not None and room_b < plan.disks_b:
        raise RestoreError(
            f"{to_dir} may not have room for this restore",
            cause=f"the disks have {size(plan.disks_b)}, and there is room for {size(room_b)}",
            action="Make room or give another folder. Images are sparse: the restore fits if the disks are not full.",
        )


class _Meter:
    """Takes progress from the restore's threads; shown and reported by the event loop."""

    def __init__(self) -> None:
        self.what = ""
        """What is restored, for people."""
        self._lock = threading.Lock()
        self._last: engine.Progress | None = None

    def __call__(self, progress: engine.Progress) -> None:
        with self._lock:
            self._last = progress

    def look(self) -> tuple[float, str] | None:
        """How far the whole is (0…1), and in words."""
        with self._lock:
            last = self._last
        if last is None:
            return None
        begin, share = _WEIGHTS[last.stage]
        part = last.done_b / last.total_b if last.total_b else 1.0
        return begin + share * part, f"{_STAGES[last.stage]}: {size(last.done_b)} of {size(last.total_b)}"


async def _done(
    access: Access, name: str, reference: str, journal: Journal | None, plan: Plan, to_dir: Path
) -> Manifest:
    """The restore, while its job is told how it goes, and says whether it still shall."""
    meter = _Meter()

    async def work() -> Manifest:
        from shared.recovery.materialise import materialise

        now = plan
        if reference == "latest":
            await _flush(access, name)
            now = await _plan(access, name, reference, journal)
        _warn_of_room(now, to_dir)
        meter.what = f"{now.machine} at {now.position}"
        return await materialise(access.store, access.vault, now, to_dir, meter)

    working = asyncio.create_task(work(), name="restore")
    telling = asyncio.create_task(_tell(access, name, meter), name="progress")
    try:
        await asyncio.wait((working, telling), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            telling.result()
        return await working
    finally:
        for task in (telling, working):
            task.cancel()
        await asyncio.gather(telling, working, return_exceptions=True)


async def _tell(access: Access, name: str, meter: _Meter) -> None:
    """Show progress, and report it. Raises RestoreCancelledError."""
    from config_server.cli.access import cancelled
    from shared.api.jobs import WorkerState

    with Progress() as progress:
        reported_at = -1e9
        while True:
            share, words = meter.look() or (None, "")
            if share is not None:
                progress.show(f"restoring {meter.what}: {share:.0%}, {words}")
            if time.monotonic() - reported_at >= _REPORT_S:
                reported_at = time.monotonic()
                job = await access.tell(WorkerState.RUNNING, progress=share, detail=words)
                if (told := cancelled(job, name)) is not None:
                    raise told
            await asyncio.sleep(0.2)


def _plan_view(plan: Plan, to_dir: Path) -> dict[str, Any]:
    from shared.recovery.position import format_ns

    return {
        "machine": plan.machine,
        "id": str(plan.position),
        "epoch": plan.position.epoch,
        "batch": plan.position.batch,
        "time": format_ns(plan.captured_ns),
        "base": plan.base.id if plan.base else None,
        "segments": len(plan.replay),
        "log_b": plan.log_b,
        "at_most_b": plan.disks_b,
        "room_b": _room_b(plan, to_dir),
        "disks": [
            {"name": disk.name, "file": f"{disk.name}.raw", "size_b": disk.sectors * 512}
            for disk in plan.disks
        ],
    }


def _plan_table(plan: dict[str, Any]) -> Table:
    rows = [
        ("machine", plan["machine"]),
        ("point", f"{plan['id']}, {plan['time']}"),
        ("begins with", f"the snapshots of point {plan['base']}" if plan["base"] else "empty disks"),
        ("replays", f"{plan['segments']} log segments, {size(plan['log_b'])}"),
        *(("writes", f"{disk['file']}, {size(disk['size_b'])}") for disk in plan["disks"]),
        ("needs", f"at most {size(plan['at_most_b'])}; there is room for {size(plan['room_b'])}"),
    ]
    return fields("Restore (dry run: nothing was written)", rows)


def _manifest_table(manifest: Manifest, to_dir: Path, took_s: float) -> Table:
    rows = [(disk.file, size(disk.size_b), disk.sha256) for disk in manifest.disks]
    title = f"{manifest.machine} at point {manifest.id}, {manifest.time}, is in {to_dir} ({seconds(took_s)})"
    table = grid(title, ("file", ">size", "sha256"), rows)
    remarks = [*manifest.remarks]
    if manifest.suspect:
        remarks.append("Suspect: capture missed writes before this point.")
    if manifest.unreadable:
        remarks.append(f"{manifest.missing}; see manifest.json.")
    if remarks:
        table.caption = "\n".join(remarks)
    return table
