"""Recovery points."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

import msgspec

from shared.api.commands import CommandView
from shared.api.permissions import Permission
from shared.api.route import Access, Nothing, Route
from shared.errors import ConfigError, LaneTakenError
from shared.vocabulary import Consistency, PointState


class PointView(msgspec.Struct, omit_defaults=True):
    id: str
    time: str
    epoch: int
    batch: int
    consistency: str
    state: PointState
    marks: list[str] = []
    suspect: bool = False
    unreadable: list[list[int]] = []
    """Source ranges (disk, sector, sectors) that are missing in its snapshots: they could not be read, and were not written since."""
    unreadable_covers: bool = False
    """The ranges hold all that is missing, and other sectors between."""
    lost: str = ""
    """Why it cannot be restored: its log is gone. Empty: it can."""
    remark: str = ""
    """What whoever restores it must know."""


class GapView(msgspec.Struct):
    """A period without points, because order was not kept: after point `after`, until point `until`; null
    where it has no such end. The times are those of the two."""

    after: str | None
    until: str | None
    since_time: str | None
    until_time: str | None
    cause: str


class PointList(msgspec.Struct):
    machine: str
    points: list[PointView]
    gaps: list[GapView] = []


class PointRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Asks for a recovery point of now. `id` makes the request idempotent: the same id is the same point."""

    id: str = ""
    consistency: str = Consistency.CRASH


class FlushRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 10.0


class FlushReply(msgspec.Struct):
    """Process servers that have uploaded everything they held when asked, and those that did not in time."""

    flushed: list[str]
    missing: list[str]


RESYNC = Route(
    "resync",
    "POST",
    "/v1/machines/{machine}/resync",
    Access.OPERATOR,
    Nothing,
    CommandView,
    "Replicate a machine anew, in a new epoch",
    needs=Permission.MACHINE_PROTECT,
    keyed=True,
    status=HTTPStatus.ACCEPTED,
    errors=(LaneTakenError,),
)
POINTS = Route(
    "points",
    "GET",
    "/v1/machines/{machine}/points",
    Access.OPERATOR,
    Nothing,
    PointList,
    "Recovery points",
    needs=Permission.POINT_READ,
    errors=(ConfigError,),
)
POINT_CREATE = Route(
    "point_create",
    "POST",
    "/v1/machines/{machine}/points",
    Access.OPERATOR,
    PointRequest,
    CommandView,
    "Ask for a point of now",
    needs=Permission.POINT_CREATE,
    keyed=True,
    status=HTTPStatus.ACCEPTED,
)
FLUSH = Route(
    "flush",
    "POST",
    "/v1/machines/{machine}/flush",
    Access.OPERATOR,
    FlushRequest,
    FlushReply,
    "Have everything spooled uploaded",
    needs=Permission.POINT_CREATE,
)
