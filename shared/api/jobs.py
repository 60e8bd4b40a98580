"""Jobs."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import msgspec

from shared.api.permissions import Permission
from shared.api.route import Access, Failure, Limit, Nothing, Route


class JobState(enum.StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """Somebody said so, and what had been done was undone."""
    ABANDONED = "abandoned"
    """What it left is somebody's who said so."""


class JobProgress(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    state: JobState = JobState.RUNNING
    progress: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    detail: Annotated[str, msgspec.Meta(max_length=10_000)] = ""
    error: Failure | None = None
    result: dict[str, Any] | None = None


class JobView(msgspec.Struct, kw_only=True):
    id: str
    kind: str
    machine: str
    state: JobState
    progress: float | None
    detail: str
    args: dict[str, Any]
    result: dict[str, Any] | None
    error: Failure | None
    created: str
    updated: str


class JobList(msgspec.Struct):
    jobs: list[JobView]


JOBS = Route(
    "jobs",
    "GET",
    "/v1/jobs",
    Access.OPERATOR,
    Limit,
    JobList,
    "Jobs, newest first",
    needs=Permission.JOB_READ,
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
    "Report a job's progress",
    needs=Permission.RESTORE_RUN,
)
