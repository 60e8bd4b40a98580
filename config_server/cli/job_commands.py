"""`understudy job …`: long operations, how far they are, and what can be said of them."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from config_server.cli.names import complete_machine
from config_server.cli.options import COMMON, CONNECTION, OUTPUT, add_options, find_target
from config_server.cli.output import (
    Progress,
    emit,
    fields,
    going_on,
    grid,
    line,
    percent,
    plain,
    run,
    told,
)
from config_server.cli.pages import collected, limit_option
from shared.errors import DeadlineError, JobEndedError, PeerError, RequestError, UnderstudyError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shared.api import Route
    from shared.api.jobs import JobView
    from shared.api.route import Nothing

_STYLES: Final = {"failed": "red", "needs-attention": "red", "abandoned": "yellow", "waiting": "dim"}
_NONE: Final = "No job was begun yet. A restore is one, for example: understudy restore MACHINE --to FOLDER"
_NONE_ACTIVE: Final = "No job is under way. All there were: understudy job list"
_POLL_S: Final = 1.0


def _complete_job(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Nothing when the config server cannot be asked."""
    try:
        with ctx.scope(cleanup=False):
            return [
                job_.id for job_ in run(_jobs("", active=False, limit=50)) if job_.id.startswith(incomplete)
            ]
    except UnderstudyError:
        return []


_id_argument = click.argument("id_", metavar="ID", shell_complete=_complete_job)
_yes_option = click.option("--yes", is_flag=True, help="Do not ask. Without a terminal it is needed.")


@click.group()
@add_options(*COMMON)
def job() -> None:
    """Long operations: restores, resyncs; and whether what was said of a machine came true."""


@job.command("list")
@click.option(
    "--machine", default="", metavar="NAME", shell_complete=complete_machine, help="Only of this one."
)
@click.option("--active", is_flag=True, help="Only those that have not ended.")
@limit_option
@add_options(*COMMON)
def job_list(machine: str, active: bool, limit: int) -> None:
    """Jobs, newest first.

    \b
    Example: understudy job list --active
    """
    found = run(_jobs(machine, active=active, limit=limit))
    emit(found, lambda: _page(found), empty=_NONE_ACTIVE if active else _NONE)


async def _jobs(machine: str, *, active: bool, limit: int) -> list[JobView]:
    from shared import api
    from shared.api.jobs import JobQuery

    async with find_target().connect() as client:
        query = JobQuery(machine=machine, active=active)
        return await collected(client, api.JOBS, query, limit, lambda page: page.jobs)


def _page(found: list[JobView]) -> RenderableType:
    """A line for each, and below them what there is to say of some."""
    from rich.console import Group

    rows = [
        (
            j.id,
            j.kind,
            j.machine,
            line((_state(j), _STYLES.get(j.state, ""))),
            percent(j.progress),
            j.created[:19],
        )
        for j in found
    ]
    parts: list[RenderableType] = [
        grid(None, ("=job", "kind", "machine", "state", ">progress", "=begun"), rows)
    ]
    for job_ in found:
        if (error := job_.error) is not None:
            head = line(f"\n{job_.id} ", (error.code, "red"), f" {error.what}")
            parts.append(told(head, error.cause, error.action))
        elif job_.waits or job_.detail:
            parts.append(f"\n{job_.id} {job_.waits or job_.detail}")
    return Group(*parts)


def _state(found: JobView) -> str:
    from shared.api.jobs import Direction

    return (
        f"{found.state}, going back" if found.direction is Direction.BACK and found.allowed else found.state
    )


@job.command("show")
@_id_argument
@add_options(*COMMON)
def job_show(id_: str) -> None:
    """One job, with each of its steps, and what can be said of it.

    \b
    Example: understudy job show 4f1d2c3b5a697887
    """
    found = run(_get(id_))
    emit(found, lambda: _one(found))


def _one(found: JobView) -> RenderableType:
    from rich.console import Group

    rows = [
        ("job", found.id),
        ("kind", found.kind),
        ("machine", found.machine),
        ("state", line((_state(found), _STYLES.get(found.state, "")))),
        ("begun", f"{found.created[:19]}" + (f" by {found.who}" if found.who else "")),
        ("last change", found.updated[:19]),
        ("progress", percent(found.progress)),
        *((name, text) for name, text in (("waits for", found.waits), ("says", found.detail)) if text),
        *((("cancelled by", found.cancelled_by),) if found.cancelled_by else ()),
        *((("its place took", _superseder(found)),) if found.superseded_by else ()),
        *(
            (name, _words(value))
            for name, value in (("asked", found.args), ("result", found.result))
            if value
        ),
    ]
    parts: list[RenderableType] = [fields(None, rows)]
    if found.steps:
        steps = [
            (step.name, step.state, str(step.tries) if step.tries else "", step.changed[:19])
            for step in found.steps
        ]
        parts.append(grid(None, ("step", "state", ">failed tries", "=since"), steps))
    if (error := found.error) is not None:
        parts.append(told(line("\n", (error.code, "red"), f" {error.what}"), error.cause, error.action))
    if found.allowed:
        parts.append("\nPossible: " + ", ".join(f"understudy job {act} {found.id}" for act in found.allowed))
    return Group(*parts)


def _named(found: JobView) -> str:
    return f"{found.kind} of '{found.machine}'" if found.machine else found.kind


def _superseder(found: JobView) -> str:
    by = found.superseded_by
    return "the deletion of the machine" if by == "deletion" else f"job {by}"


def _words(value: dict[str, Any]) -> str:
    """Without what stands there for the job itself."""
    plain = ((name, one) for name, one in value.items() if not isinstance(one, dict))
    return ", ".join(f"{name.replace('_', ' ')} {one}" for name, one in plain if one not in ("", None, False))


@job.command("watch")
@_id_argument
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Seconds; without it as long as it takes.",
)
@add_options(*CONNECTION, OUTPUT)
def job_watch(id_: str, timeout_s: float | None) -> None:
    """Wait until a job has ended. Exit code 0: it is done; 4: not in time; 5: it ended otherwise, or needs attention."""
    with going_on(f"The job goes on. To see it: understudy job show {id_}"):
        found = run(_watch(id_, timeout_s))
    _check_done(found)
    emit(found, lambda: _one(found))


async def _watch(id_: str, timeout_s: float | None) -> JobView:
    """As it ended, or stands still."""
    from shared import api
    from shared.api.jobs import JobState
    from shared.api.route import Nothing

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    async with find_target().connect() as client:
        found = await client.call(api.JOB, Nothing(), id=id_)
        with Progress() as progress:
            while found.state in (JobState.RUNNING, JobState.WAITING):
                progress.show(_one_line(found))
                if deadline is not None and time.monotonic() >= deadline:
                    raise DeadlineError(
                        f"The {_named(found)} did not end within {timeout_s:g} s",
                        cause=f"it is {_state(found)}" + (f": {found.waits}" if found.waits else ""),
                        action=f"It goes on. See it: understudy job show {found.id}.",
                    )
                await asyncio.sleep(_POLL_S)
                try:
                    found = await client.call(api.JOB, Nothing(), id=id_)
                except PeerError as exc:  # it may be restarting, and the job goes on
                    progress.show(f"job {id_}: the config server does not answer ({exc.cause or exc.what})")
    return found


def _one_line(found: JobView) -> str:
    share = f", {found.progress:.0%}" if found.progress is not None else ""
    says = found.waits or found.detail
    of = f" of {found.machine}" if found.machine else ""
    return f"{found.kind}{of} (job {found.id}): {_state(found)}{share}" + (f", {says}" if says else "")


def _check_done(found: JobView) -> None:
    """Raises JobEndedError."""
    from shared.api.jobs import JobState

    if found.state is JobState.DONE:
        return
    error = found.error
    who = f"{found.cancelled_by} cancelled it" if found.cancelled_by else ""
    if found.superseded_by:
        who = f"its place took {_superseder(found)}, as {found.cancelled_by} said"
    raise JobEndedError(
        f"The {_named(found)} is not done: it {'was' if found.state is JobState.CANCELLED else 'is'} {found.state}",
        cause=who or (f"{error.code} {error.what}: {error.cause}" if error else found.waits),
        action=f"See it: understudy job show {found.id}.",
    )


@job.command("cancel")
@_id_argument
@_yes_option
@add_options(*COMMON)
def job_cancel(id_: str, yes: bool) -> None:
    """Cancel a job: what it has done is undone, where that can be."""
    from shared import api

    _act(
        api.JOB_CANCEL,
        id_,
        yes=yes,
        question="Cancel the {job}? What it has done is undone, where that can be.",
    )


@job.command("retry")
@_id_argument
@add_options(*COMMON)
def job_retry(id_: str) -> None:
    """Have a job go on now that waits, or that needs attention."""
    from shared import api

    _act(api.JOB_RETRY, id_, yes=True)


@job.command("abandon")
@_id_argument
@_yes_option
@add_options(*COMMON)
def job_abandon(id_: str, yes: bool) -> None:
    """End a job that needs attention as it is. What it left is yours: `job show` names it."""
    from shared import api

    _act(
        api.JOB_ABANDON,
        id_,
        yes=yes,
        question="Abandon the {job}? Nobody removes what it left (understudy job show ID).",
    )


def _act(route: Route[Nothing, JobView], id_: str, *, yes: bool, question: str = "") -> None:
    if not yes:
        found = run(_get(id_))
        asked = question.format(job=_named(found))
        if not sys.stdin.isatty():
            raise RequestError(
                f"Nothing was said of job '{id_}'",
                cause=f"there is no terminal to ask: {asked}",
                action="Say it with --yes.",
            )
        click.confirm(plain(asked), abort=True, err=True)
    after = run(_said(route, id_))
    emit(after, lambda: _one(after))


async def _said(route: Route[Nothing, JobView], id_: str) -> JobView:
    from shared.api.route import Nothing

    async with find_target().connect() as client:
        return await client.call(route, Nothing(), id=id_)


async def _get(id_: str) -> JobView:
    from shared import api
    from shared.api.route import Nothing

    async with find_target().connect() as client:
        return await client.call(api.JOB, Nothing(), id=id_)
