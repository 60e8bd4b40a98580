"""Machines as people see them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from shared.api.permissions import Permission
from shared.api.points import PointView
from shared.api.policies import POLICY_NAME_LENGTH, Policy
from shared.api.route import Access, Nothing, Route
from shared.desired import Mark, Verb
from shared.errors import PolicyNotFoundError
from shared.vocabulary import Health, HopState, Severity


class PolicyChoice(msgspec.Struct, forbid_unknown_fields=True):
    """Of a machine. The name of a policy."""

    name: Annotated[str, msgspec.Meta(max_length=POLICY_NAME_LENGTH)]


class ErrorView(msgspec.Struct, omit_defaults=True):
    code: str
    what: str
    cause: str = ""
    action: str = ""
    severity: Severity = Severity.ERROR
    object: str = ""
    source: str = ""
    """Who reported it: `agent:lab`, or `config-server`."""


class DiskView(msgspec.Struct):
    name: str
    device: str
    size_b: int
    mode: str
    mode_cause: str
    state: str
    progress: float | None
    serial: str = ""


class RingView(msgspec.Struct):
    used_b: int
    size_b: int


class HopView(msgspec.Struct):
    """One hop of the data path: capture, stream, upload, apply."""

    name: str
    where: str
    state: HopState
    detail: str
    seen_s: float | None
    """Age of what is known about it."""


class WishView(msgspec.Struct, kw_only=True):
    """What an operator wants of a machine."""

    verb: Verb
    disks: list[str]
    """Paths of all that are to be protected; empty: those of the agent's configuration, or none where it is to stop."""
    process_servers: list[str]
    """Empty: that of the agent's configuration. Where it is to stop: those before, for when it is protected again."""
    since: str
    """When it was said, or taken over from the agent."""
    pending: str | None
    """Since when the agent is to do so and does not say that it does; null when it does."""
    mark: Mark


class DeletionView(msgspec.Struct, kw_only=True):
    """What is lost when a machine is deleted; and when that is, where somebody wants it."""

    machine: str
    container: str
    """In which all of it lies; empty where storage holds nothing of it."""
    gone: bool = False
    """It is not there any more, where that is asked for: what is left is the machine's entry in the registry."""
    identity: str
    """Of its hardware, as storage has it."""
    points: int
    """How many there are, or were when it was asked for."""
    first: str | None = None
    """Time of the oldest, ..."""
    last: str | None = None
    """... and of the newest; null where there is none, or is not looked up."""
    unknown: str = ""
    """Why the points could not be listed; `points` is 0 then."""
    stays: list[str] = []
    """What is not deleted with it, a line each, where that is asked for."""
    due: str | None = None
    """Not before then, as things are; null where nobody has asked for it, or somebody has to say it again."""
    is_due: bool = False
    """That was before now, as this server counts the delay."""
    after_s: float = 0.0
    """The delay, of which each second counts in which the config server runs."""
    asked: str | None = None
    who: str = ""
    stage: str = ""
    """waiting | closing | closed | removing: how far it has come (config_server/rules/deletion.py)."""
    waits: str = ""
    """Why it is not done although it is due, or does not become due."""


class MachineView(msgspec.Struct, kw_only=True):
    name: str
    state: str
    """A MachineState, or another that its agent reports."""
    health: Health
    """The worst of `errors`."""
    cause: str
    protected: bool
    mode: str
    mode_cause: str
    epoch: int
    """0: none, or a new one begins, and has no number yet."""
    epochs: int | None
    rounds: int | None
    rpo_s: float | None
    """Age of the newest ordered state that blob storage holds (config_server/rules/rpo.py); null while there is none, and where
    none is owed: it is not protected, and does not replicate."""
    last_seen_s: float | None
    process_server: str
    disks: list[DiskView]
    ring: RingView
    rates: dict[str, float]
    audit: dict[str, Any]
    last_point: PointView | None
    hops: list[HopView]
    errors: list[ErrorView]
    policy: Policy
    policy_name: str = ""
    """Empty: it has one of its own, without a name."""
    wish: WishView | None = None
    """Null: no opinion, its agent goes by its own configuration."""
    deletion: DeletionView | None = None
    """Null: nobody wants it deleted."""
    job: str = ""
    """In the answer to `protect`, `unprotect` and `delete`: the job that sees whether it comes true; empty where it is so already, and
    elsewhere."""


class MachineList(msgspec.Struct):
    machines: list[MachineView]


POLICY_ASSIGN = Route(
    "policy_assign",
    "PUT",
    "/v1/machines/{machine}/policy",
    Access.OPERATOR,
    PolicyChoice,
    MachineView,
    "Have a policy hold for a machine",
    needs=Permission.MACHINE_PROTECT,
    errors=(PolicyNotFoundError,),
)
MACHINES = Route(
    "machines",
    "GET",
    "/v1/machines",
    Access.OPERATOR,
    Nothing,
    MachineList,
    "All machines",
    needs=Permission.MACHINE_READ,
)
MACHINE = Route(
    "machine",
    "GET",
    "/v1/machines/{machine}",
    Access.OPERATOR,
    Nothing,
    MachineView,
    "One machine",
    needs=Permission.MACHINE_READ,
)
