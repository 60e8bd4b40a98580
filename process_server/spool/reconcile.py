"""What of a recovered spool is still to be uploaded, given what the log index says. Pure.

The index is the truth about `uploaded`; the spool continues it or is superfluous. Cases, with the index
ending at batch n:

- a file that ends at or before n is listed: superfluous (its deletion was interrupted, or another process
server listed the same batches);
- the first other file begins at n + 1 and names n's digest: it and all after it are to be uploaded;
- it begins behind n + 1: batches that were listed once, or their files would be here, are not: storage
forgot. The caller has found that out
  before, since the index must reach at least to the batch before the oldest file;
- else another process server took the log after us and listed other batches. Then the agent has sent it
everything behind n of *its* log,
  or will send it again: ours are superfluous. (If it can not, Welcome is below what it holds, and it begins
  a new epoch.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from process_server.spool.file import SpooledSegment


class Plan(NamedTuple):
    to_upload: list[SpooledSegment]
    superfluous: list[SpooledSegment]
    cause: str
    """Why batches that are not listed are superfluous; empty if there are none."""


def reconcile(segments: Sequence[SpooledSegment], last: int, last_digest: str) -> Plan:
    """`segments` are consecutive; `last` and `last_digest` (hex) are the index's last batch."""
    listed = [s for s in segments if s.last.number <= last]
    rest = list(segments[len(listed) :])
    if not rest or (rest[0].first.number, rest[0].header.predecessor) == (last + 1, last_digest):
        return Plan(rest, listed, "")
    cause = f"another process server listed other batches up to {last}; ours begin at {rest[0].first.number}"
    return Plan([], list(segments), cause)
