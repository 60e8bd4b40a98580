"""A machine as the config server has it: what is wanted of it, and its policy. Pure."""

from __future__ import annotations

import msgspec

from config_server.rules.deletion import Deletion
from config_server.rules.wishes import Own
from shared.api.policies import Policy
from shared.desired import WantedDisk, Wish


class Assigned(msgspec.Struct, frozen=True):
    """What holds for a machine."""

    policy: Policy
    name: str
    """Empty: it has one of its own, without a name."""


class Machine(msgspec.Struct, frozen=True):
    name: str
    protected: bool
    disks: tuple[WantedDisk, ...]
    """Those that shall be protected, there or away, with their ids as far as its agent has told; where nobody ever named any, all that it
    has captured. Of one that was stopped, those before."""
    policy: Policy
    created_ns: int
    ended: bool = False
    """Its protection was: whoever is silent then is not missed."""
    policy_name: str = ""
    """Empty: the policy is the machine's own."""
    wish: Wish | None = None
    """None: no opinion. `protected`, `ended` and `disks` are what it says, else what was recorded before there were wishes."""
    wish_ns: int = 0
    """When it was made, or adopted."""
    wish_incarnation: str = ""
    """In which it came here (wishes.py)."""
    identity: str = ""
    """Of the hardware whose disks these are; empty where it is not known (its agent never reported, or has none)."""
    dropped: tuple[WantedDisk, ...] = ()
    """Those that operators have said shall go, until its agent goes by that."""
    deletion: Deletion | None = None
    """Somebody wants it deleted (deletions.py)."""
    moved: bool = False
    """Whether operators have named other process servers than before, until its agent goes by that."""

    @property
    def own(self) -> Own | None:
        return None if self.wish is None else Own(self.wish, self.wish_incarnation)

    @property
    def assigned(self) -> Assigned:
        return Assigned(self.policy, self.policy_name)
