"""A job as people see it, and what they can say of it as it is now. Pure."""

from __future__ import annotations

from typing import Final

from shared.api.jobs import Direction, JobAct, JobState

_ACTIVE: Final = (JobState.RUNNING, JobState.WAITING, JobState.ATTENTION)


def state(stored: JobState, *, waits: str, attention: bool) -> JobState:
    """`stored` is RUNNING until the job has ended. (One that was abandoned while it needed attention is stored as failed: the program of
    before knows no other word, and lists nothing where it meets one.)"""
    if stored is not JobState.RUNNING:
        return JobState.ABANDONED if stored is JobState.FAILED and attention else stored
    return JobState.ATTENTION if attention else JobState.WAITING if waits else stored


def allowed(shown: JobState, direction: Direction, *, is_driven: bool) -> list[JobAct]:
    """`shown`: as `state` has it. `is_driven`: by a config server; else its worker is a command, which can only be told to stop."""
    if shown not in _ACTIVE:
        return []
    acts = [JobAct.CANCEL] if direction is Direction.FORWARD else []
    if is_driven and shown is not JobState.RUNNING:
        acts.append(JobAct.RETRY)
    if is_driven and shown is JobState.ATTENTION:
        acts.append(JobAct.ABANDON)
    return acts
