"""Jobs: long operations that somebody began, what became of each of their steps, and what can be said of them."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import msgspec

from shared.api.permissions import Permission
from shared.api.route import Access, Failure, Nothing, Page, Paged, Route
from shared.errors import DeadlineError, JobActError, JobNotFoundError, MachineNotFoundError


class JobState(enum.StrEnum):
    RUNNING = "running"
    WAITING = "waiting"
    """For what `waits` says: it goes on by itself."""
    ATTENTION = "needs-attention"
    """For a person, who says how it goes on (`allowed`)."""
    DONE = "done"
    FAILED = "failed"
    """What had been done was undone."""
    CANCELLED = "cancelled"
    """Somebody said so, and what had been done was undone."""
    ABANDONED = "abandoned"
    """What it left is somebody's who said so."""


class WorkerState(enum.StrEnum):
    """Of a job whose worker is a command somewhere, as the command says it."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(enum.StrEnum):
    BEGUN = "begun"
    """Its effect may be there, in part, or come yet."""
    DONE = "done"
    UNDOING = "undoing"
    UNDONE = "undone"
    """As far as its owner saw: what a dead owner asked for may come yet, so it is looked for once more, later."""
    GONE = "gone"
    """It was undone, and nothing came of it since, for as long as anything may take."""


class Direction(enum.StrEnum):
    FORWARD = "forward"
    BACK = "back"
    """What was done is being undone."""


class JobAct(enum.StrEnum):
    """What a person can say of a job."""

    CANCEL = "cancel"
    """What was done is undone."""
    RETRY = "retry"
    """Go on now: do not wait longer, or try again what failed."""
    ABANDON = "abandon"
    """It ends as it is; what it left is whose who says so."""


class JobProgress(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    state: WorkerState = WorkerState.RUNNING
    progress: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    detail: Annotated[str, msgspec.Meta(max_length=10_000)] = ""
    error: Failure | None = None
    result: dict[str, Any] | None = None


class StepView(msgspec.Struct, kw_only=True):
    """A step that was begun."""

    name: str
    state: StepState
    tries: int
    """How often it has failed since it last did not."""
    changed: str


class JobView(msgspec.Struct, kw_only=True):
    id: str
    kind: str
    machine: str
    state: JobState
    progress: float | None
    """Of the step that is under way, 0…1; null: not known."""
    detail: str
    args: dict[str, Any]
    result: dict[str, Any] | None
    error: Failure | None
    """Why it failed, turned back, or stands still."""
    created: str
    updated: str
    who: str = ""
    """Began it; empty where that was not written down."""
    direction: Direction = Direction.FORWARD
    waits: str = ""
    """For what; empty: it does not."""
    cancelled_by: str = ""
    """Empty: nobody has. The command of a restore, which reports it, stops for this."""
    superseded_by: str = ""
    """The job that took its place, or `deletion`, where that of its machine did; empty: nothing did."""
    steps: list[StepView] = []
    """Those that were ever begun, in the order in which they are done."""
    allowed: list[JobAct] = []


class JobQuery(Page, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    machine: str = ""
    """Only of this one; empty: of all."""
    active: bool = False
    """Only those that have not ended."""


class JobList(Paged):
    jobs: list[JobView]


JOBS = Route(
    "jobs",
    "GET",
    "/v1/jobs",
    Access.OPERATOR,
    JobQuery,
    JobList,
    "Jobs, newest first",
    needs=Permission.JOB_READ,
    errors=(JobNotFoundError,),
)
JOB = Route(
    "job", "GET", "/v1/jobs/{id}", Access.OPERATOR, Nothing, JobView, "One job", needs=Permission.JOB_READ
)
JOB_UPDATE = Route(
    "job_update",
    "PUT",
    "/v1/jobs/{id}",
    Access.OPERATOR,
    JobProgress,
    JobView,
    "Report how the job of a command goes",
    needs=Permission.RESTORE_RUN,
    waits=True,
)
JOB_CANCEL = Route(
    "job_cancel",
    "POST",
    "/v1/jobs/{id}/cancel",
    Access.OPERATOR,
    Nothing,
    JobView,
    "Cancel a job: what it has done is undone",
    needs=Permission.JOB_CHANGE,
    errors=(JobActError, MachineNotFoundError, DeadlineError),
)
JOB_RETRY = Route(
    "job_retry",
    "POST",
    "/v1/jobs/{id}/retry",
    Access.OPERATOR,
    Nothing,
    JobView,
    "Have a job that waits go on now",
    needs=Permission.JOB_CHANGE,
    errors=(JobActError,),
)
JOB_ABANDON = Route(
    "job_abandon",
    "POST",
    "/v1/jobs/{id}/abandon",
    Access.OPERATOR,
    Nothing,
    JobView,
    "End a job that needs attention as it is: what it left is yours",
    needs=Permission.JOB_CHANGE,
    errors=(JobActError,),
)
