"""A position in a machine's log, and times as people write them. Pure."""

from __future__ import annotations

import datetime
import re
from typing import Final, NamedTuple

from shared.batch import BatchNumber, Epoch

_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+-]\d\d:\d\d))", re.ASCII
)
_POSITION: Final = re.compile(r"(\d{1,8})-(\d{1,12})", re.ASCII)


class Position(NamedTuple):
    """After batch `batch` of `epoch`. Ordered as the log is: by epoch, then by batch, never by time."""

    epoch: Epoch
    batch: BatchNumber

    def __str__(self) -> str:
        return f"{self.epoch}-{self.batch}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """The position that `text` names as `<epoch>-<batch>`, leading zeroes allowed; None when it is
        none.
        """
        match = _POSITION.fullmatch(text)
        return cls.of(int(match[1]), int(match[2])) if match else None

    @classmethod
    def of(cls, epoch: int, batch: int) -> Position:
        return cls(Epoch(epoch), BatchNumber(batch))


NOWHERE: Final = Position.of(0, 0)
"""Before everything."""


def format_ns(time_ns: int) -> str:
    """Unix nanoseconds as RFC 3339 in UTC with nine decimals, so that no two times become one."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def parse_rfc3339(text: str) -> int | None:
    """Unix nanoseconds of an RFC 3339 time with offset (`Z` or `±hh:mm`); None when `text` is not one."""
    match = _TIME.fullmatch(text.strip())
    if not match:
        return None
    date, clock, fraction, zulu, offset = match.groups()
    try:
        moment = datetime.datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zulu else offset}")
    except ValueError:
        return None
    whole = (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(seconds=1)
    return whole * 1_000_000_000 + int((fraction or "").ljust(9, "0"))
