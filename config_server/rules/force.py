"""Which config server is the one in force: what storage says of it, and what follows for one of them. Pure.

Each that takes over (a database that was put back, on whichever host) raises the number by one, under a condition that no other one can
have met: so of two one has the higher number, and the other sees it. A server is told apart by its *holder*, a random word in its database,
which a restore draws anew; replicas over one database share it.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

NOBODY = ""
"""The holder of a generation of which only the state is left."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """`control/generation.json`."""

    v: int = 1
    generation: Annotated[int, msgspec.Meta(ge=1)]
    holder: str
    host: str
    """For people, as is `since_ns`: which host took over, and when by its clock."""
    since_ns: int


class Ours(NamedTuple):
    """What a server's database says."""

    holder: str
    generation: int = 0
    """0: it has had none."""
    takes_over: bool = False
    """It was put back, or made, since: that was somebody's act."""
    over: int | None = None
    """Over which generation that was said, at most: a later one is a later act. None: over whichever is there."""
    superseded: int = 0
    """The highest generation of which it knows that another one had it."""


class InForce(NamedTuple):
    generation: int


class Superseded(NamedTuple):
    by: Generation


class Put(NamedTuple):
    """This is to be put in the place of what was found, if that is there still."""

    generation: int


def judge(ours: Ours, found: Generation | None, highest: int) -> InForce | Superseded | Put:
    """`found`: what storage has; None: nothing. `highest`: of the states in storage, 0 where there is none; they are looked at only where
    `found` is not ours."""
    if found is not None and found.holder == ours.holder:
        return InForce(found.generation)
    top = max(highest, ours.superseded, 0 if found is None else found.generation)
    if ours.takes_over and (ours.over is None or top <= ours.over):
        return Put(top + 1)
    if ours.generation > top or (found is None and ours.generation == top):
        return Put(max(1, ours.generation))  # the first start; or storage was set back, or lost it
    if found is None or found.generation < top:
        return Superseded(Generation(generation=top, holder=NOBODY, host="", since_ns=0))
    return Superseded(found)
