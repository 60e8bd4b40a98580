"""Copies of machines that were refused lately: who they are, where, and which of them a person means who says that a machine has moved.
Pure: it is told what happens, and when.

Each identity for itself. Copies come again every few seconds, so the one that was refused last is whichever spoke last, and nobody
means that one. Who holds a stolen certificate names identities as he likes, so of each machine only the newest few are kept.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shared.api.copies import IDENTITY_LENGTH
from shared.errors import CopyRefusedError, RequestError
from shared.machine.active_side import UNKNOWN, ActiveSide, shown
from shared.status import Problem
from shared.vocabulary import Severity

LASTING_S: Final = 60.0
"""A copy that is refused for so long is shown: what ends sooner was a machine that had been restarted, which takes up to 50 s
(docs/operations.md), until a process server sees that the session from before the power cut is over."""
SHOWN_S: Final = 300.0
MOST: Final = 16
"""Of one machine."""


class Refused(NamedTuple):
    identity: str
    boot: str | None
    address: str
    error: CopyRefusedError
    since_s: float
    at_s: float


class Copies:
    def __init__(self) -> None:
        self._refused: dict[str, dict[str, Refused]] = {}
        """By machine and identity, the one that spoke last at the end."""

    def refused(
        self,
        machine: str,
        identity: str,
        boot: str | None,
        address: str,
        error: CopyRefusedError,
        now_s: float,
    ) -> None:
        known = self._refused.setdefault(machine, {})
        name = identity[:IDENTITY_LENGTH]
        before = known.pop(name, None)
        since_s = before.since_s if before and now_s - before.at_s < SHOWN_S else now_s
        known[name] = Refused(name, boot, address, error, since_s, now_s)
        if len(known) > MOST:
            del known[next(iter(known))]

    def admitted(self, machine: str, identity: str, boot: str) -> None:
        """It was no copy."""
        known = self._refused.get(machine, {})
        refused = known.get(identity)
        if refused is not None and refused.boot == boot:
            del known[identity]

    def bound(self, machine: str, identity: str) -> bool:
        """`identity` is the machine from now on; whether it was refused lately."""
        return self._refused.get(machine, {}).pop(identity, None) is not None

    def forget(self, machine: str) -> None:
        self._refused.pop(machine, None)

    def lately(self, machine: str, now_s: float) -> list[Refused]:
        """The one that spoke last first."""
        known = self._refused.get(machine, {})
        return [refused for refused in reversed(known.values()) if now_s - refused.at_s < SHOWN_S]

    def problems(self, now_s: float) -> list[Problem]:
        """Copies that were refused lately, and not only once."""
        return [
            Problem(
                **refused.error.as_dict() | {"what": f"{refused.error.what} at {refused.address}"},
                severity=Severity.WARNING,
                object=machine,
                key=refused.identity,
            )
            for machine in self._refused
            for refused in self.lately(machine, now_s)
            if refused.at_s - refused.since_s >= LASTING_S
        ]


def meant(
    machine: str, side: ActiveSide | None, refused: list[Refused], now_s: float, changed_s: float
) -> str:
    """The identity that `machine rebind NAME` means when it names none. `changed_s`: how long ago `side` became it, by the wall clock.

    Only where it can be one alone. Behind a change that is the new active side: its answer was lost, or the command is repeated, and by
    now the old hardware is what is refused. Later, too, whoever goes back to that names it. Raises RequestError.
    """
    what = f"Machine '{machine}' was not bound anew"
    is_now = f"it is {shown(side.identity)}" if side is not None else "it has no active side"
    before = side.replaced if side is not None else UNKNOWN
    others = [one for one in refused if one.identity and (side is None or one.identity != side.identity)]
    candidates = [one for one in others if one.identity != before]
    if side is not None and before != UNKNOWN and changed_s < SHOWN_S:
        if not candidates:
            return side.identity
        is_now += f" since {changed_s:.0f} s"
    elif len(candidates) == 1:
        return candidates[0].identity
    if others:
        raise RequestError(
            what,
            cause=f"{is_now}, and it is not clear who is meant: {'; '.join(_told(one, now_s) for one in others)}",
            action=f"Name the one that is it from now on: understudy machine rebind {machine} --identity ID.",
        )
    if refused:
        raise RequestError(
            what,
            cause=f"{is_now}, and whoever was refused lately has that identity, too, or none: {_told(refused[0], now_s)}",
            action="Give the machine an identity of its own (`identity` in its agent.toml), start its agent, and run the command again.",
        )
    raise RequestError(
        what,
        cause=f"{is_now}, and no copy of it was refused lately, so it is not known which machine is meant",
        action="Start the agent on the machine that is it from now on, or name its identity: --identity ID.",
    )


def _told(one: Refused, now_s: float) -> str:
    return f"{shown(one.identity)} at {one.address}, refused {max(0.0, now_s - one.at_s):.0f} s ago"
